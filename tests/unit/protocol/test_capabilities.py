"""Capabilities: the bits and maps of go-livepeer's wire, and who can serve whom."""

import pytest

from fourfold.protocol import livepeer_pb2 as pb
from fourfold.protocol.capabilities import (
    ModelOffer,
    demand,
    demanded_models,
    from_bitstring,
    incompatibility,
    offer,
    offered_models,
    to_bitstring,
)

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
WARM = ModelOffer(MODEL, warm=True, capacity=2, capacity_in_use=1, runner_version="0.14.1")
COLD = ModelOffer("fourfold/lanczos", warm=False, capacity=1)


def test_the_first_word_is_the_one_that_gateways_expect() -> None:
    """protocol_and_payments.md 3c: {0-12, 14, 26, 30} and the auth token as mandatory."""
    capabilities = offer([WARM])

    assert list(capabilities.bitstring) == [0x44005FFF]
    assert list(capabilities.mandatories) == [4096]
    assert list(demand(MODEL).bitstring) == [1140875263]


def test_bits_beyond_the_first_word_have_words_of_their_own() -> None:
    """BYOC is 37, others may pass 63."""
    assert to_bitstring([]) == []
    assert to_bitstring([64, 0, 130]) == [1, 1, 4]
    assert from_bitstring([1, 1, 4]) == {0, 64, 130}


def test_an_offer_reads_back_as_its_models() -> None:
    """What an orchestrator says is what a gateway reads."""
    capabilities = pb.Capabilities.FromString(offer([WARM, COLD], version="0.9.1").SerializeToString())

    assert offered_models(capabilities) == {MODEL: WARM, COLD.model_id: COLD}
    assert capabilities.version == "0.9.1"
    assert (capabilities.capacities[30], capabilities.capacities[0]) == (3, 1)


def test_workers_shared_by_models_are_counted_once() -> None:
    """The total is given where it is not the sum."""
    assert offer([WARM, COLD], capacity=2).capacities[30] == 2


def test_without_bit_30_nothing_is_offered() -> None:
    """An orchestrator of another task has no upscale models, whatever its constraints say."""
    capabilities = offer([WARM])
    capabilities.bitstring[:] = to_bitstring([0, 12])

    assert offered_models(capabilities) == {}
    assert offered_models(pb.Capabilities(bitstring=to_bitstring([30]))) == {}


def test_the_demand_names_its_model_and_its_capacity() -> None:
    """An orchestrator prices by walking the request's capacities."""
    assert demanded_models(demand(MODEL)) == (MODEL,)
    assert demand(MODEL).capacities[30] == 1


def test_a_request_without_capacity_30_asks_no_price() -> None:
    """As go-livepeer, which walks the capacities."""
    request = demand(MODEL)
    del request.capacities[30]

    assert demanded_models(request) == ()
    assert demanded_models(pb.Capabilities(capacities={30: 1})) == ()


def test_livepeers_python_gateway_asks_without_bits() -> None:
    """`build_capabilities(UPSCALE, model)` sets a capacity and a constraint and nothing else."""
    request = pb.Capabilities(capacities={30: 1})
    request.constraints.PerCapability[30].models[MODEL].SetInParent()

    assert demanded_models(request) == (MODEL,)


def test_a_gateway_and_an_orchestrator_that_fit() -> None:
    """The usual case."""
    assert incompatibility(demand(MODEL), offer([WARM])) is None


def _without(bit: int) -> pb.Capabilities:
    job = demand(MODEL)
    job.bitstring[:] = to_bitstring(from_bitstring(job.bitstring) - {bit})
    return job


def _warm_only() -> pb.Capabilities:
    job = demand(COLD.model_id)
    job.constraints.PerCapability[30].models[COLD.model_id].warm = True
    return job


def _other_capability() -> pb.Capabilities:
    job = demand(MODEL)
    job.constraints.PerCapability[27].models["sd"].SetInParent()
    return job


def _more_bits() -> pb.Capabilities:
    job = demand(MODEL)
    job.bitstring[:] = to_bitstring(from_bitstring(job.bitstring) | {35})
    return job


@pytest.mark.parametrize(
    ("job", "version", "reason"),
    [
        (demand(MODEL, min_version="0.9.2"), "0.9.1", "version 0.9.1 is below the wanted 0.9.2"),
        (demand(MODEL, min_version="0.9"), "", "version unset is below the wanted 0.9"),
        (demand(MODEL, min_version="0.1"), "undefined", "version undefined is below the wanted 0.1"),
        (_without(12), "0.9.1", "the job lacks mandatory capabilities [12]"),
        (demand("another/model"), "0.9.1", "capability 30: model 'another/model' is not offered"),
        (demand(MODEL.upper()), "0.9.1", f"capability 30: model {MODEL.upper()!r} is not offered"),
        (_warm_only(), "0.9.1", "capability 30: model 'fourfold/lanczos' is not warm"),
        (_other_capability(), "0.9.1", "capability 27: model 'sd' is not offered"),
        (
            demand(MODEL, min_runner_version="0.15.0"),
            "0.9.1",
            f"capability 30: model {MODEL!r} runs on 0.14.1, not 0.15.0",
        ),
        (
            demand(COLD.model_id, min_runner_version="0.1.0"),
            "0.9.1",
            "capability 30: model 'fourfold/lanczos' runs on an unknown version, not 0.1.0",
        ),
        (_more_bits(), "0.9.1", "capabilities [35] are not offered"),
    ],
)
def test_what_does_not_fit_is_named(job: pb.Capabilities, version: str, reason: str) -> None:
    """Each condition of go-livepeer's CompatibleWith."""
    assert incompatibility(job, offer([WARM, COLD], version=version)) == reason


@pytest.mark.parametrize("version", ["0.9.1", "v0.9.1", "0.9.1-fourfold.0.1.0", "0.9.2", "0.10", "1"])
def test_versions_compare_as_numbers_and_without_suffix(version: str) -> None:
    """go-livepeer's suffixes are later than the release, so they are left out."""
    assert incompatibility(demand(MODEL, min_version="0.9.1"), offer([WARM], version=version)) is None


def test_a_minimum_that_is_no_version_asks_for_nothing() -> None:
    """As go-livepeer, which logs it and goes on."""
    assert incompatibility(demand(MODEL, min_version="soon"), offer([WARM], version="0.0.1")) is None


def test_the_first_reason_is_the_one_that_go_livepeer_would_stop_at() -> None:
    """Version, mandatories, constraints, bits."""
    job = _more_bits()
    job.bitstring[:] = to_bitstring(from_bitstring(job.bitstring) - {12})
    job.constraints.minVersion = "9.0"
    orchestrator = offer([COLD], version="0.9.1")
    reasons = []
    reasons.append(incompatibility(job, orchestrator))
    job.constraints.minVersion = ""
    reasons.append(incompatibility(job, orchestrator))
    job.bitstring[:] = to_bitstring(from_bitstring(job.bitstring) | {12})
    reasons.append(incompatibility(job, orchestrator))

    assert [reason.split()[0] if reason else None for reason in reasons] == ["version", "the", "capability"]


def test_looking_changes_nothing() -> None:
    """Protobuf maps insert what is read; the check must not."""
    job, orchestrator = demand(MODEL), pb.Capabilities()
    before = job.SerializeToString(deterministic=True)
    incompatibility(job, orchestrator)

    assert (job.SerializeToString(deterministic=True), orchestrator.SerializeToString()) == (before, b"")
