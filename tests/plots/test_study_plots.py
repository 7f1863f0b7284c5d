import copy

import pytest

from kaconv.training.study_results import merge_results
from kaconv.training.study_spec import parse_study
from kaviz.plots import plot_study, study_findings, study_frame, study_order

MODELS = ["mobilenetv2_050", "ka_mobilenetv2_050_l", "ka_mobilenetv2_050_h"]
SPEC = parse_study(
    {
        "name": "small",
        "data": "digits",
        "models": MODELS,
        "seeds": [0, 1, 2],
        "variants": {"plain": {}, "warmup": {"attention_warmup_epochs": 1, "models": [MODELS[1]]}},
    }
)
ERRORS = {
    (MODELS[0], "plain"): (30.0, 31.5, 30.5),
    (MODELS[1], "plain"): (29.0, 30.0, 28.5),
    (MODELS[1], "warmup"): (27.0,),
    (MODELS[2], "plain"): (),
}


def a_run(model: str, variant: str, seed: int, error: float | None) -> dict:
    row = {"model": model, "variant": variant, "seed": seed, "state": "not run"}
    if error is None:
        return row
    last = {"epoch": 3, "test_error": error, "test_top5_error": error / 5, "test_error_fresh_statistics": error - 0.5}
    speed = 100.0 if model == MODELS[0] else 50.0
    costs = {"params": 704_074, "paper_flops": 24_990_000, "seconds_per_epoch": 60.0, "images_per_second": speed}
    return row | costs | {"state": "done", "best": last, "last": last, "epochs": 3, "config": {"data": "digits"}}


@pytest.fixture
def results() -> dict:
    runs = [
        a_run(*place, seed, dict(enumerate(errors)).get(seed)) for place, errors in ERRORS.items() for seed in range(3)
    ]
    return merge_results(SPEC, [("one.json", {"study": SPEC.to_dict(), "runs": runs, "provenance": {}})])[0]


def test_the_table_says_what_was_run_and_what_was_not(results):
    frame = study_frame(results)
    assert list(frame.index) == [MODELS[0], MODELS[1], f"{MODELS[1]}, warmup", MODELS[2]]
    plain, large, warm, missing = (frame.loc[name] for name in frame.index)
    assert plain["seeds"] == "3 of 3"
    assert plain["top-1 error (%)"].startswith("30.7\u00a0±\u00a0")
    assert plain["top-5 error (%)"] == "6.1"
    assert plain["fresh statistics (%)"] == "30.2"
    assert plain["ImageNet, paper (%)"] == "35.62"
    assert (plain["FLOPs (M)"], plain["images/s"]) == ("25.0", "100")
    assert large["difference (points)"].startswith("−1.5\u00a0±\u00a01.2")
    assert warm["difference (points)"] == "−3.0"
    assert (missing["seeds"], missing["top-1 error (%)"]) == ("0 of 3", "not run")


def test_the_figure_shows_each_seed_and_each_pair(results):
    figure = plot_study(results)
    errors, differences = figure.axes
    named = ["".join(label.get_text().split()) for label in errors.get_yticklabels()]
    assert named == [name.replace(" ", "") for name in study_frame(results).index[:3]]
    drawn = sorted(float(value) for line in errors.lines if line.get_marker() in "os" for value in line.get_xdata())
    assert drawn == sorted(error for values in ERRORS.values() for error in values)
    drawn = sorted(float(v) for line in differences.lines if line.get_marker() == "s" for v in line.get_xdata())
    assert drawn == pytest.approx([-3.0, -2.0, -1.5, -1.0])
    assert differences.get_xlabel().startswith(f"minus {MODELS[0]}")


def test_nothing_is_drawn_of_a_study_without_results(results):
    empty = copy.deepcopy(results) | {"summary": [], "differences": []}
    with pytest.raises(ValueError, match="no training of the study has finished"):
        plot_study(empty)


def test_the_findings_claim_no_more_than_the_seeds_say(results):
    large, warm, missing = study_findings(results)
    assert large.startswith(f"{MODELS[1]} has an error 1.5 points lower than {MODELS[0]} (95 % interval -2.7 to -0.3")
    assert "from a single seed, which tells nothing about others" in warm
    assert missing == "5 of 12 trainings have not been run."
    results["differences"][0] |= {"difference": -0.2, "difference_interval": (-1.0, 0.6)}
    assert "cannot be told apart (-0.2 points" in study_findings(results)[0]


def test_the_order_is_compared_with_the_papers(results):
    large, plain = MODELS[1], MODELS[0]
    expected = (
        f"The order is the same: the paper's, least error first: {large}, {plain}; this study's: {large}, {plain}."
    )
    assert study_order(results) == expected
    worse = results | {"summary": [row | {"test_error": 31 + (row["model"] == large)} for row in results["summary"]]}
    assert study_order(worse).startswith(
        "The order is not the same: the paper's, least error first: ka_mobilenetv2_050_l"
    )
    assert study_order(results | {"summary": []}).startswith("Too few")


def test_a_builder_goes_by_its_function(results):
    renamed = {"my.nets:wide" if model == MODELS[2] else model: 0 for model in MODELS}
    runs = [row | {"model": "my.nets:wide"} if row["model"] == MODELS[2] else row for row in results["runs"]]
    study = results["study"] | {"models": list(renamed)}
    assert list(study_frame(results | {"study": study, "runs": runs}).index)[-1] == "wide"
