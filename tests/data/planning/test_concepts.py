"""The plan of a concept is that of its rows alone, whatever else is in the data."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from dopsd.config import load_config
from dopsd.config.data import PRIOR
from dopsd.data.manifest import Manifest, PrepareSettings, RowGroup, RowRef
from dopsd.data.planning.concepts import concept_groups
from dopsd.data.planning.plan import Plan
from dopsd.data.prepare.layout import lay_out
from dopsd.data.run_data import plan_of
from dopsd.errors import ConfigError, DataError
from tests.helpers.tiny import make_config

BUCKETS = ("32x32", "48x32", "32x48")
SETTINGS = PrepareSettings(rows_per_group=4, groups_per_shard=3, seed=5)


def prepared(sizes: dict[str, int]) -> tuple[Manifest, dict[RowRef, str]]:
    """A data set of so many samples of each concept, and the id of each row."""
    samples = [
        (f"{concept}/{number}", BUCKETS[number % (1 + len(concept) % 3)], concept)
        for concept, count in sizes.items()
        for number in range(count)
    ]
    shards = lay_out([(at, *sample) for at, sample in enumerate(samples)], SETTINGS)
    groups, ids = [], {}
    for shard in shards:
        for number, (bucket, rows) in enumerate(shard.groups):
            names = [samples[row][2] for row in rows]
            runs = tuple((name, len(list(run))) for name, run in groupby(names))
            group = RowGroup(
                file=shard.file, row_group=number, bucket=bucket, rows=len(rows), concepts=runs
            )
            groups.append(group)
            ids |= {group.ref(row): samples[at][0] for row, at in enumerate(rows)}
    manifest = Manifest(
        source="made up",
        settings=SETTINGS,
        seen=len(samples),
        samples=len(samples),
        buckets=dict(Counter(sample[1] for sample in samples)),
        concepts=dict(sorted(sizes.items())),
        caption_sets=(),
        references={"0": len(samples)},
        fingerprint="f",
        row_groups=tuple(groups),
        quarantined=(),
        notes=(),
    )
    return manifest, ids


def config(*concepts: str, **data):
    return make_config(
        "base",
        data={"concepts": list(concepts), **data},
        learner={"global_batch": 4, "micro_batch": 2},
    )


def steps(plan: Plan, ids: dict[RowRef, str], count: int = 12) -> list:
    """(bucket, ids, turns, repeats, samples of the step) of each micro-batch."""
    return [
        (b.bucket, [ids[row] for row in b.rows], b.turns, b.repeats, b.step_samples)
        for b in plan.micro_batches(0, count)
    ]


ALONE = {"rex": 11}
MORE = {"rex": 11, "aya": 7, "": 3}
MANY = {"a": 30, "rex": 11, "zz": 1, "aya": 7, "bb": 12, "": 3}


def test_adding_concepts_changes_no_other_concepts_plan() -> None:
    plans = []
    for sizes in (ALONE, MORE, MANY):
        manifest, ids = prepared(sizes)
        plan = plan_of(config("rex"), manifest)
        plans.append((plan.key, steps(plan, ids)))
    assert plans[0] == plans[1] == plans[2]
    assert plans[0][1][0] != plans[0][1][1]


def test_a_concept_is_trained_whole_and_nothing_beside_it() -> None:
    manifest, ids = prepared(MANY)
    for concept, count in MANY.items():
        plan = plan_of(config(concept), manifest)
        epoch = plan.micro_batches(0, plan.steps_per_epoch)
        seen = [ids[row] for batch in epoch for row in batch.rows]
        assert sorted(seen) == sorted(f"{concept}/{n}" for n in range(count))


def test_several_concepts_are_those_rows_and_weights_of_others_do_no_harm() -> None:
    manifest, ids = prepared(MANY)
    plan = plan_of(config("aya", "rex", concept_weights={"a": 5, "rex": 2}), manifest)
    epoch = plan.micro_batches(0, plan.steps_per_epoch)
    seen = Counter(ids[row].split("/")[0] for batch in epoch for row in batch.rows)
    assert seen == {"aya": 7, "rex": 22}
    same = plan_of(config("rex", "aya", concept_weights={"rex": 2}), manifest)
    assert steps(same, ids) == steps(plan, ids)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_the_bases_own_samples_have_their_share_of_the_draws(share: float) -> None:
    manifest, ids = prepared({"rex": 10, "aya": 5, PRIOR: 120})
    prior = {"prompts": "p.txt", "share": share}
    plan = plan_of(config(prior=prior, concept_weights={"rex": 3}), manifest)
    drawn = Counter(
        ids[row].split("/")[0] for batch in plan.micro_batches(0, 400) for row in batch.rows
    )
    assert drawn[PRIOR] / drawn.total() == pytest.approx(share, abs=0.03)
    assert drawn["rex"] / drawn["aya"] == pytest.approx(3 * 10 / 5, rel=0.05)


def test_a_share_is_of_what_is_drawn_where_rounding_adds_much() -> None:
    manifest, _ = prepared({"dog": 16, PRIOR: 40})
    dogs = [
        RowGroup(file=f"{n}", row_group=0, bucket=f"{n}x8", rows=2, concepts=(("dog", 2),))
        for n in range(8)
    ]
    base = RowGroup(file="p", row_group=0, bucket="8x8", rows=40, concepts=((PRIOR, 40),))
    manifest = manifest.model_copy(update={"row_groups": (*dogs, base)})
    prior = {"prompts": "p.txt", "share": 0.5}
    plan = plan_of(config(prior=prior, concept_weights={"dog": 0.1}), manifest)
    epoch = plan.micro_batches(0, plan.steps_per_epoch)
    drawn = Counter(row.file == "p" for batch in epoch for row in batch.rows)
    assert drawn == {True: 8, False: 8}, "one of each bucket, and as many of the base's own"


def test_a_share_beside_a_weight_is_refused() -> None:
    told = r"data\.prior\.share: 0\.5 beside data\.prior\.weight: 2"
    with pytest.raises(ConfigError, match=told):
        load_config("shapes", ["data.prior.share=0.5", "data.prior.weight=2"])


def test_groups_of_a_concept_hold_one_bucket_and_no_more_rows_than_a_row_group() -> None:
    manifest, _ = prepared(MANY)
    bucket = {group.ref(row): group.bucket for group in manifest.row_groups for row in range(4)}
    cut = concept_groups(manifest)
    assert cut.keys() == MANY.keys()
    for groups in cut.values():
        for group in groups:
            assert {bucket[ref] for ref in group.refs} == {group.bucket}
            assert group.rows <= SETTINGS.rows_per_group


@pytest.mark.parametrize(
    ("concepts", "line"),
    [
        (["rax"], "data.concepts: 'rax' is no concept of the data (did you mean 'rex'?), allowed"),
        (["rex", "q" * 4000], "data.concepts: 'qqqq"),
    ],
)
def test_an_unknown_concept_is_told_with_what_may_have_been_meant(concepts, line) -> None:
    manifest, _ = prepared(MORE)
    with pytest.raises(DataError) as error:
        plan_of(config(*concepts), manifest)
    assert str(error.value).startswith(line) and len(str(error.value)) < 1500


def test_a_concept_given_twice_and_the_priors_name_are_refused() -> None:
    from dopsd.config import load_config

    for given, line in (("[a, a]", "data.concepts: 'a' is there twice"), ("[prior]", "base's own")):
        with pytest.raises(ConfigError, match=line):
            load_config("shapes", [f"data.concepts={given}"])


def test_balanced_concepts_come_equally_often_in_an_epoch_as_long() -> None:
    manifest, ids = prepared({"rex": 12, "aya": 4, "ivo": 2})

    def draws(*concepts: str, **section: object) -> Counter[str]:
        plan = plan_of(config(*concepts, **section), manifest)
        batches = plan.micro_batches(0, plan.steps_per_epoch)
        return Counter(ids[row].split("/")[0] for batch in batches for row in batch.rows)

    assert draws() == {"rex": 12, "aya": 4, "ivo": 2}
    assert draws(balance="concepts") == {"rex": 6, "aya": 6, "ivo": 6}
    assert draws("aya", "ivo", balance="concepts") == {"aya": 3, "ivo": 3}
    twice = draws(balance="concepts", concept_weights={"ivo": 2})
    assert twice == {"rex": 6, "aya": 6, "ivo": 12}
    without = draws(balance="concepts", concept_weights={"rex": 0})
    assert without == {"aya": 3, "ivo": 3}
