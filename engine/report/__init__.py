"""From run folders to one page: gather facts, lay them out as tables, figures and pictures, write HTML, Markdown, CSV.

Every accuracy is a sum over ledger rows. Nothing here touches a model, a device or the network.
"""
