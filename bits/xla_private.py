"""The private names of torch_xla that we need, because no public one of 2.9 does the same; asked for before a run."""

import torch_xla

NAMES = (
    "_get_allow_execution",  # a step in which nothing may run but at its cuts
    "_set_allow_execution",
    "_get_graph_hash",  # which of two graphs is new
    "_get_xla_sharding_spec",  # whether a batch is divided
    "_xla_dot_general",  # a product of bf16 numbers that is float32
    "_get_stablehlo",  # tpu-check: a step's program, with the places of its state in it
    "_get_tensors_xla_device_data_node",
    "_xla_get_default_device",
    "_xla_get_tensor_id",
)
# A step that is traced once; where one is missing, it is traced at every call.
REPEAT_NAMES = (
    "_check_device_tensor_need_materialization",  # what a step leaves to be computed
    "_check_tensor_need_materialization",
    "_clear_pending_irs",
    "_get_graph_hash",
    "_get_tensors_xla_device_data_node",
    "_get_xla_sharding_specs",
    "_run_cached_graph",
    "_unique_id_for_ir_and_data",
    "_xla_get_tensor_id",
    "_xla_warm_up_cache",
)


def check_private(available: object = torch_xla._XLAC) -> None:
    """ValueError where this torch_xla has not all of them."""
    if missing := [name for name in NAMES if not hasattr(available, name)]:
        raise ValueError(
            f"torch_xla {torch_xla.__version__} has no {missing[0]}, which a run needs; install the release that this "
            "toolkit is written for: `pip install -e .[xla]`"
        )


def can_repeat(available: object = torch_xla._XLAC) -> bool:
    """Whether this torch_xla runs a graph that was traced before."""
    return all(hasattr(available, name) for name in REPEAT_NAMES)
