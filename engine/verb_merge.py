"""`attack merge`: the parts of one evaluation, from several devices and machines, into one ledger and one result.

Parts are folders that `attack` has written, with --part or cut off half-way. Rows that two of them have must agree.
Neither the model nor the shards are asked for: the ledgers say which images belong to the evaluation.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.attack_notes import facts_of, remarks, stored_version
from engine.attack_parts import AttackPart, read_parts, refuse_strangers
from engine.attack_subject import FILE as SUBJECT
from engine.attack_subject import kept_threat_of
from engine.attack_tally import Images, tally_in_turn
from engine.cli import Launch
from engine.folder import RunFolder
from engine.ledger import LedgerWriter
from engine.log import open_log
from engine.measure import result_name, store_result, table, with_drop


def run(arguments: argparse.Namespace, launch: Launch) -> dict[str, Any]:
    """The results of the joined evaluations; also written to results/*.json. ValueError where images are missing."""
    target = RunFolder(arguments.output)
    _check(target, arguments.parts)
    parts = read_parts(arguments.parts)
    refuse_strangers(parts)
    target.create()
    identities = list(parts[0].evaluations)
    with LedgerWriter(target.ledger, 0) as writer:
        for identity in identities:
            writer.describe(identity, parts[0].evaluations[identity])
            for part in parts:
                writer.write(part.rows(identity))
    for identity in identities:
        _join_files(parts, identity, target)
    results = [_result(target, identity, parts[0].evaluations[identity]) for identity in identities]
    log = open_log(target.log, 0, quiet=True)
    results = [
        {**result, "result": store_result(target, log, result_name(result), result).stem}
        for result in results
    ]
    print(table(results), file=sys.stdout)
    return {"exit_code": 0, "results": results}


def _check(target: RunFolder, folders: Sequence[Path]) -> None:
    target.check_writable()
    if not target.is_empty():
        raise ValueError(
            f"output folder {target.root} is not empty; choose a new --output for what is joined"
        )
    if len(folders) < 2:
        raise ValueError(f"only {folders[0]} was given; parts to be joined are two folders or more")


def _join_files(parts: Sequence[AttackPart], identity: str, target: RunFolder) -> None:
    """What lies beside the rows: the first look, checks of broken images, pictures, stored images."""
    for part in reversed(parts):  # of files that several have the first one's stays
        for path in [*part.files(identity), *part.folder.glob(SUBJECT)]:
            place = target.root / path.relative_to(part.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".jsonl":
                with place.open("ab") as joined:
                    joined.write(path.read_bytes())
            else:
                place.write_bytes(path.read_bytes())
    stored: dict[Path, list[AttackPart]] = {}
    for part in parts:
        for path in part.stored(identity):
            stored.setdefault(path.relative_to(part.folder), []).append(part)
    for name, owners in stored.items():
        owners[0].join_stored(name, owners[1:], identity, target.root / name)


def _result(target: RunFolder, identity: str, about: Mapping[str, Any]) -> dict[str, Any]:
    facts, attack = facts_of(target.ledger, identity), about["attack"]
    if "num_images" not in facts:
        raise ValueError(
            f"none of the parts says how many images evaluation {identity} has (ledger/facts-{identity}.json); join "
            "whole output folders"
        )
    images = Images(facts["num_images"], facts["key_hash"])
    try:
        counts = tally_in_turn(
            target.ledger, identity, about["components"], images, counts_bad=facts["counts_bad"]
        )
    except ValueError as error:
        raise ValueError(
            f"the parts are not the whole of {about['name']}: {error}; {target.root} has what there is: give it to "
            "`attack` as --output with the words of the parts, and it does the rest"
        ) from None
    version = stored_version(facts, attack["norm"])
    head = {
        "name": about["name"],
        "weights": facts["weights"],
        "recipe": facts["recipe"],
        "evaluation": identity,
        **{
            name: about[name]
            for name in ("weights_sha256", "suite", "contract", "attack", "seed", "precision")
        },
    }
    said = remarks(target.ledger, identity, version, facts, eps=attack["eps"], norm=attack["norm"])
    result = {**head, "version": version.id, **counts, **said}
    result = with_drop(json.loads(json.dumps(result)))
    return result | kept_threat_of(target.root, result)
