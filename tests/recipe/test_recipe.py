"""Recipe: every mistake is one sentence, every override does what it says, digests cover what they name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ctmr.errors import InputError
from ctmr.imaging.volume import Direction
from ctmr.metrics.protocol import PROTOCOLS
from ctmr.metrics.registry import METRICS
from ctmr.pipeline import stages
from ctmr.recipe.loading import load, merge, override, parse, recipe_folder, recipe_names, render, set_key
from ctmr.recipe.recipe import Recipe, section_digest, section_tree
from ctmr.recipe.training import Train
from ctmr.recipe.tuning import Uniform
from ctmr.system.digest import tree_digest

STAGE_NAMES = stages.names()

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ["default", *sorted(p.stem for p in (REPOSITORY / "recipes").glob("*.yaml"))]
SECTIONS = sorted(Recipe().dump())
plain = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda c: st.dictionaries(st.sampled_from("abcd"), c, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abcd"), plain, max_size=4)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def refusal(tree, source="recipe"):
    with pytest.raises(InputError) as caught:
        parse(tree, source=source)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


# Files


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_under_its_name_and_survives_printing(name, tmp_path):
    recipe = load(name)
    assert recipe.name == name
    printed = tmp_path / "printed.yaml"
    printed.write_text(render(recipe), encoding="utf-8")
    assert load(str(printed)) == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_a_printed_recipe_holds_every_key(name):
    def keys(tree, prefix=""):
        for key, value in tree.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    assert set(keys(Recipe().dump())) - {"gate", "tune"} <= set(keys(yaml.safe_load(render(load(name))))) | {
        f"normalise.arbitrary.{k}" for k in ("percentile", "headroom")
    }


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"default"}))
def test_what_a_recipe_file_writes_is_what_the_recipe_holds(name):
    """Independent of `merge`: every leaf of the YAML is found again in the resolved recipe."""

    def leaves(tree, path=()):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, (*path, key))
            else:
                yield (*path, key), value

    resolved = load(name).dump()
    for path, value in leaves(yaml.safe_load((REPOSITORY / "recipes" / f"{name}.yaml").read_text())):
        node = resolved
        for key in path:
            node = node[key]
        assert node == value, path


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - {"default"}))
def test_a_search_space_that_a_recipe_writes_is_the_whole_search_space(name):
    written = yaml.safe_load((REPOSITORY / "recipes" / f"{name}.yaml").read_text()).get("tune", {}).get("space")
    if written is not None:
        assert set(load(name).tune.space) == set(written)


def test_recipes_are_found_outside_the_repository_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == SHIPPED
    assert recipe_folder() == REPOSITORY / "recipes"


def test_an_unknown_recipe_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(InputError, match="there is no recipe 'nonesuch'; the recipes are default"):
        load("nonesuch")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "not readable YAML"),
        ("- a\n- b\n", "holds list"),
        ("", "holds NoneType"),
        ("!!python/object/apply:os.system ['true']", "not readable YAML"),
        ("train:\n", "train"),
        ("1: 2\n", "recipe bad.yaml"),
        ("train: {steps: 0}\n", "train.steps.*greater than or equal to 1.*found 0"),
    ],
)
def test_an_unusable_file_is_one_sentence_that_names_it(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    assert "bad.yaml" in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not readable YAML"):
        load(str(path))


# Keys


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"trian": {}}, "trian"),
        ({"train": {"step": 5}}, "train.step"),
        ({"network": {"generator": {"ngf": 5}}}, "network.generator.ngf"),
        ({"gate": {"paired_volume_hu": {"psnr": {"minimum": 1}}}}, "gate.paired_volume_hu.psnr.minimum"),
        ({"tune": {"space": {"train.lr_generator": {"kind": "uniform", "low": 1, "high": 2, "x": 3}}}}, "x"),
    ],
)
def test_an_unknown_key_is_one_sentence_that_names_it(tree, key):
    sentence = refusal(tree)
    assert f"{key}'" in sentence
    assert "there is no key" in sentence


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"train": {"steps": "many"}}, "train.steps: input should be a valid integer"),
        ({"train": {"precision": "fp8"}}, "'fp32', 'tf32', 'bf16' or 'auto'"),
        ({"direction": "ct2pet"}, "direction: input should be 'mr2ct' or 'ct2mr' (found 'ct2pet')"),
        ({"directions": []}, "direction: input should be 'mr2ct' or 'ct2mr' (found [])"),
        ({"directions": ["mr2ct", "ct2mr"]}, "(found ['mr2ct', 'ct2mr'])"),
        ({"preprocess": {"size": [30, 32]}}, "not divisible by 4"),
        ({"name": "Bad Name"}, "name: string should match"),
        ({"normalise": {"hu": {"kind": "window", "low": 5, "high": 5}}}, "low 5 must be below high 5"),
        ({"tune": {"space": {"gate.psnr": {"kind": "uniform", "low": 0, "high": 1}}}}, "cannot be tuned"),
        ({"tune": {"space": {"train.beta1": {"kind": "normal"}}}}, "tune.space.train.beta1"),
        ({"evaluate": {"paired_protocols": ["psnr"]}}, "there is no protocol 'psnr'"),
    ],
)
def test_an_impossible_value_is_one_sentence_with_what_is_allowed(tree, words):
    assert words in refusal(tree, source="recipe mine.yaml")


@pytest.mark.parametrize(
    ("space", "reason"),
    [
        ({"train.nonsense": {"kind": "uniform", "low": 0, "high": 1}}, "a key the recipe does not have"),
        ({"train.beta1": {"kind": "uniform", "low": 0.9, "high": 0.1}}, "low above high"),
        ({"train.lr_generator": {"kind": "log_uniform", "low": 1.0, "high": 0.1}}, "low above high"),
        ({"train.batch": {"kind": "choice", "values": []}}, "nothing to choose"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_runs(space, reason):
    assert "tune.space" in refusal({"tune": {"space": space}}), reason


def test_a_recipes_own_settings_are_inside_its_own_search_space():
    """The first trial is the recipe itself, so Optuna must be able to take its values."""
    for name in SHIPPED:
        recipe = load(name)
        tree = recipe.dump()
        for key, space in recipe.tune.space.items():
            section, *rest = key.split(".")
            value = tree[section]
            for part in rest:
                value = value[part]
            if space.kind == "choice":
                assert value in space.values, (name, key)
            else:
                assert space.low <= value <= space.high, (name, key)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_rate_that_is_no_number_is_refused(value):
    assert "train.lr_generator" in refusal({"train": {"lr_generator": value}})


@pytest.mark.parametrize(
    ("knots", "words"),
    [
        ([[-1024, -1]], "rise strictly"),
        ([[-1024, -1], [-1024, 0], [2000, 1]], "rise strictly"),
        ([[-1024, -1], [0, -1], [2000, 1]], "rise strictly"),
        ([[-1000, -1], [2000, 1]], "the first knot is"),
        ([[-1024, -1], [2000, 0.9]], "the first knot is"),
    ],
)
def test_knots_that_cannot_be_inverted_are_refused(knots, words):
    tree = {"normalise": {"hu": {"kind": "window", "low": -1024, "high": 2000, "knots": knots}}}
    assert words in refusal(tree)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"generator_every": 2, "discriminator_every": 5}, "one of generator_every and discriminator_every must be 1"),
        ({"zoom": [1.2, 0.9]}, "zoom is the lowest, then the highest"),
        ({"subset_images": 100}, "subset_images and subset_fraction go together"),
        ({"subset_fraction": 0.5}, "subset_images and subset_fraction go together"),
        ({"rotation_deg": 200}, "train.rotation_deg"),
    ],
)
def test_a_training_that_contradicts_itself_is_refused(train, words):
    assert words in refusal({"train": train})


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"log_as": {"ABA": ["cycle_xy"]}}, "loss.log_as.ABA"),
        ({"log_as": {"ABA": []}}, "loss.log_as.ABA"),
        ({"log_as": {"A B/A": ["cycle_mr"]}}, "loss.log_as"),
        ({"cycle_terms": {"l2": 1}}, "loss.cycle_terms.l2: should be one of l1, mse, ssim"),
        (
            {"adversarial": "hinge"},
            "loss.adversarial: should be one of least_squares, least_squares_sigmoid, bce, wass",
        ),
        ({"perceptual": {"extractor": "vgg16"}}, "loss.perceptual.extractor"),
    ],
)
def test_a_loss_that_does_not_exist_is_refused_by_its_key(loss, words):
    assert words in refusal({"loss": loss})


# Gate


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"paired": {"psnr": {"min": 1}}}, "gate: there is no protocol 'paired'"),
        ({"paired_volume_hu": {"sharpness": {"min": 1}}}, "gate.paired_volume_hu: there is no metric 'sharpness'"),
        ({"unpaired_pixels": {"psnr": {"min": 1}}}, "can never be in a gate"),
        ({"paired_volume_hu": {"psnr": {"min": "high"}}}, "gate.paired_volume_hu.psnr.min"),
    ],
)
def test_a_gate_that_cannot_be_measured_is_refused(gate, words):
    assert words in refusal({"gate": gate})


@given(
    st.sampled_from(sorted(n for n, p in PROTOCOLS.items() if p.may_gate)),
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(["min", "max"]),
    st.floats(-1e6, 1e6),
)
def test_any_limit_can_be_set_by_its_dotted_key(protocol, metric, side, value):
    recipe = override(Recipe(), [(f"gate.{protocol}.{metric}.{side}", value)])
    assert getattr(recipe.gate.limits[protocol][metric], side) == value


# Merge and override


@given(mappings, mappings)
@settings(max_examples=50)
def test_a_merge_holds_everything_the_override_says_and_changes_neither_side(base, over):
    before = (repr(base), repr(over))
    out = merge(base, over)
    assert (repr(base), repr(over)) == before

    def holds(tree, said):
        for key, value in said.items():
            if isinstance(value, dict) and isinstance(tree[key], dict):
                holds(tree[key], value)
            else:
                assert tree[key] == value

    holds(out, over)
    assert all(out[k] == v for k, v in base.items() if k not in over)


@given(mappings)
@settings(max_examples=50)
def test_merging_nothing_or_itself_changes_nothing(tree):
    assert merge(tree, {}) == merge({}, tree) == merge(tree, tree) == tree


def test_another_kind_replaces_a_section_instead_of_mixing_two_kinds():
    recipe = parse({"normalise": {"arbitrary": {"kind": "window", "low": 0, "high": 4095}}})
    assert recipe.normalise.arbitrary.kind == "window"


@pytest.mark.parametrize("tree", [{"levels": 256}, {"high": 3000.0}])
def test_one_key_of_a_section_that_has_a_kind_leaves_its_other_keys(tree):
    hu = parse({"normalise": {"hu": tree}}).normalise.hu
    assert (hu.kind, hu.low) == ("window", -1024.0)
    assert tree.items() <= hu.model_dump().items()


def test_a_key_is_set_at_any_depth():
    tree = {"a": {"b": {"c": 1}}, "x": 1}
    set_key(tree, "a.b.c", 2)
    set_key(tree, "a.new.deep", 3)
    set_key(tree, "x", [1])
    assert tree == {"a": {"b": {"c": 2}, "new": {"deep": 3}}, "x": [1]}


def test_nothing_can_be_set_below_a_value():
    with pytest.raises(InputError, match="'steps' is a value, not a section"):
        set_key({"train": {"steps": 5}}, "train.steps.more", 1)


def test_one_bound_of_a_search_range_is_set_by_its_dotted_key():
    recipe = override(Recipe(), [("tune.space.train.lr_generator.low", 5e-5)])
    assert recipe.tune.space["train.lr_generator"].low == 5e-5
    assert set(recipe.tune.space) == set(Recipe().tune.space)


@pytest.mark.parametrize("key", ["loss.cycle", "train.beta1", "loss.warmup.weight"])
def test_a_whole_search_range_is_set_or_added_by_its_dotted_key(key):
    space = {"kind": "uniform", "low": 0.25, "high": 0.5}
    assert override(Recipe(), [(f"tune.space.{key}", space)]).tune.space[key] == Uniform(low=0.25, high=0.5)


def test_an_override_names_the_option_and_leaves_the_original_alone():
    recipe = Recipe()
    assert override(recipe, [("train.steps", 7)]).train.steps == 7
    assert recipe.train.steps == Train().steps
    with pytest.raises(InputError, match=r"^--set: there is no key 'train.stepz'"):
        override(recipe, [("train.stepz", 7)])


# --set


@pytest.mark.parametrize(
    ("text", "get", "value"),
    [
        ("train.lr_generator=1e-3", lambda r: r.train.lr_generator, 1e-3),
        ("train.lr_generator=1.5E-4", lambda r: r.train.lr_generator, 1.5e-4),
        ("train.steps=500", lambda r: r.train.steps, 500),
        ("train.flip=false", lambda r: r.train.flip, False),
        ("preprocess.size=[64, 32]", lambda r: r.preprocess.size, (64, 32)),
        ("direction=ct2mr", lambda r: r.direction, Direction.CT2MR),
        ("loss.warmup={weight: 2, fraction: 1e-1}", lambda r: (r.loss.warmup.weight, r.loss.warmup.fraction), (2, 0.1)),
        ("data.max_images=null", lambda r: r.data.max_images, None),
        ("register.name=brain=1", lambda r: r.register_.name, "brain=1"),
        ("register.alias=best", lambda r: r.register_.alias, "best"),
        ("gate.paired_volume_hu.psnr.min=99", lambda r: r.gate.limits["paired_volume_hu"]["psnr"].min, 99.0),
        (" train.steps =500", lambda r: r.train.steps, 500),
    ],
)
def test_values_of_set_are_read_as_people_write_them(text, get, value):
    assert get(load("default", [text])) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.steps", "is not key=value"),
        ("=5", "is not key=value"),
        ("train.steps=[1,", "is not a YAML value"),
        ("train.steps=", "train.steps"),
        ("train.steps=1e-3", "train.steps"),
        ("train=5", "train"),
        ("nonsense=5", "there is no key 'nonsense'"),
        ("train.steps.more=5", "is a value, not a section"),
        (".steps=5", "--set"),
        ("train.=5", "--set"),
    ],
)
def test_a_bad_set_is_one_sentence(text, words):
    with pytest.raises(InputError) as caught:
        load("default", [text])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_direction_given_as_a_list_is_read_with_one_notice(tmp_path):
    """In a process of its own: the notice comes once a process."""
    (tmp_path / "mine.yaml").write_text("directions: [ct2mr]\n")
    code = (
        "from ctmr.recipe.loading import load\n"
        "from ctmr.recipe.recipe import Recipe\n"
        "print(Recipe.model_validate({'directions': ['ct2mr']}).direction)\n"
        f"print(load({str(tmp_path / 'mine.yaml')!r}).direction, load('demo', ['directions=[ct2mr]']).direction)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ct2mr"] * 3
    assert done.stderr == "ctmr: the recipe key directions is now direction, one value: mr2ct or ct2mr\n"


def test_the_last_set_of_a_key_wins():
    assert load("default", ["train.steps=5", "train.steps=6"]).train.steps == 6


# Digests

OTHERS = {
    "gate": [("gate.paired_volume_hu.psnr.min", 99.0)],
    "tune": [("tune.trials", 3), ("tune.space.loss.cycle.low", 6.0)],
    "train": [("train.steps", 7)],
    "deploy": [("deploy.chunk", 3)],
    "register": [("register.name", "other")],
    "description": [("description", "another")],
    "evaluate": [("evaluate.bootstrap", 5)],
    "data": [("data.split_seed", 4)],
    "loss": [("loss.cycle", 6.0)],
}


@given(st.sampled_from(sorted(OTHERS)), st.sets(st.sampled_from(SECTIONS), min_size=1))
@settings(max_examples=60)
def test_a_section_changes_the_digests_that_name_it_and_no_other(changed, sections):
    before, after = (section_digest(r, sections) for r in (Recipe(), override(Recipe(), OTHERS[changed])))
    assert (before != after) == (changed in sections)


@given(st.floats(-100, 100))
@settings(max_examples=20)
def test_no_gate_ever_invalidates_training(limit):
    changed = override(Recipe(), [("gate.paired_volume_hu.psnr.min", limit), ("gate.structure.nmi.max", limit)])
    for name in ("fetch", "preprocess", "tune", "train"):
        sections = stages.load(name).sections
        assert section_digest(changed, sections) == section_digest(Recipe(), sections)


@pytest.mark.parametrize("name", STAGE_NAMES)
def test_every_stage_declares_sections_that_exist(name):
    spec = stages.load(name)
    assert spec.name == name
    assert set(spec.sections) <= set(SECTIONS)


def test_what_was_made_when_the_direction_was_a_list_is_found_again():
    """Digests of ``{"directions": ["mr2ct"]}``, as stages recorded them."""
    old = {"directions": ["mr2ct"], "deploy": Recipe().dump()["deploy"]}
    assert section_tree(Recipe(), ["direction", "deploy"]) == old
    assert section_digest(Recipe(), ["direction"]) == tree_digest({"directions": ["mr2ct"]})


def test_the_order_of_sections_does_not_count():
    assert section_digest(Recipe(), ["train", "loss"]) == section_digest(Recipe(), ["loss", "train"])


def test_neighbours_need_slices_at_one_distance():
    assert "network.neighbours 1 needs slices at one distance" in refusal({"network": {"neighbours": 1}})
    assert parse({"network": {"neighbours": 1}, "preprocess": {"slice_spacing_mm": 2}}).network.neighbours == 1
    for neighbours in (-1, 9):
        assert "network.neighbours" in refusal({"network": {"neighbours": neighbours}})
