"""Recipe files: every setting typed, every mistake one clear sentence."""

from pathlib import Path

import pytest

from audiovq.config import ModelConfig
from audiovq.files import FileRefused
from audiovq.recipe import (
    DataSettings,
    ManifestSettings,
    Recipe,
    read_recipe,
)

LEAST = '[data]\ntrain = [{ path = "a.jsonl.gz" }]\n'
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*/recipe.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_of_one_manifest_has_all_defaults(tmp_path):
    recipe = read_recipe(write(tmp_path, LEAST))
    assert recipe == Recipe(data=DataSettings(train=(ManifestSettings("a.jsonl.gz", 1.0),)))
    assert recipe.model == ModelConfig()
    assert recipe.crop_frames == 50


def test_settings_are_read_into_their_types(tmp_path):
    text = """
        [model]
        n_codebooks = 4
        strides = [40, 8]
        channels = [64, 96]
        encoder_blocks = [0, 1]
        [data]
        train = [{ path = "a.jsonl", weight = 2 }, { path = "b.jsonl" }]
        crop_seconds = 2
        [loss]
        mel = 1.5
        [train]
        precision = "32-true"
        [card]
        name = "mine"
        anything = [1, 2]
    """
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.model.strides == (40, 8)
    assert recipe.model.n_codebooks == 4
    assert recipe.data.train == (ManifestSettings("a.jsonl", 2.0), ManifestSettings("b.jsonl", 1.0))
    assert isinstance(recipe.data.train[0].weight, float)
    assert isinstance(recipe.data.crop_seconds, float)
    assert recipe.crop_frames == 100
    assert recipe.loss.mel == 1.5
    assert recipe.card == {"name": "mine", "anything": [1, 2]}


def test_changes_override_the_file(tmp_path):
    path = write(tmp_path, LEAST + "[train]\nsteps = 5\n")
    changes = [
        "train.steps=7",
        "train.precision=32-true",
        'data.validation="b c.jsonl"',
        "data.level_range_db = 3",
        "model.strides=[40, 8]",
        "model.channels=[64, 96]",
        "model.encoder_blocks=[0, 1]",
        'data.train=[{path="z.jsonl", weight=3}]',
        "card.name=mine",
    ]
    recipe = read_recipe(path, changes)
    assert recipe.train.steps == 7
    assert recipe.train.precision == "32-true"
    assert recipe.data.validation == "b c.jsonl"
    assert recipe.data.level_range_db == 3.0
    assert recipe.model.strides == (40, 8)
    assert recipe.data.train == (ManifestSettings("z.jsonl", 3.0),)
    assert recipe.card == {"name": "mine"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[train]\nstep = 3\n", r'no setting "train\.step"; did you mean "train.steps"'),
        ("[trian]\nsteps = 3\n", 'no setting "trian"; did you mean "train"'),
        ("[train]\nzzz = 3\n", "the names are steps, autoencoder_steps"),
        ("[train]\nsteps = 3.5\n", "train.steps must be a whole number, not 3.5"),
        ("[train]\nsteps = true\n", "train.steps must be a whole number, not True"),
        ('[train]\nlearning_rate = "fast"\n', "learning_rate must be a number, not 'fast'"),
        ("[train]\nprecision = 16\n", "train.precision must be text, not 16"),
        ('[train]\nprecision = "16"\n', '"auto", "bf16-mixed" or "32-true", not "16"'),
        ("[train]\nsteps = 0\n", "train.steps must be at least 1, not 0"),
        ("[train]\nthreads = -1\n", "train.threads must be at least 1, or 0 for all idle cores"),
        ("[train]\ndevices = 5\n", r"multiple of train.devices \(5\), not 12"),
        ("[loss]\nunit_gradient = 1.5\n", r"loss.unit_gradient must be in 0\.\.1, not 1.5"),
        ('[train]\nlearn = "encoder"\n', 'train.learn must be "all" or "decoder"'),
        ('[train]\nlearn = "decoder"\n', "name it as train.initial_model"),
        ("[model]\nunit_blocks = 9\n", "unit_blocks must be at most the encoder's last number"),
        ("[model]\nspectrum_size = 511\n", "spectrum_size must be 0 or an even number"),
        ("[model]\nspectrum_size = 1300\n", "from half a hop to four hops"),
        ("[model]\nlookahead = 3\n", "lookahead must be 0, 1 or 2"),
        ("[model]\nstrides = 4\n", "model.strides must be a list, not 4"),
        ("[model]\ncodebook_sise = 4\n", 'did you mean "model.codebook_size"'),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_file(tmp_path, text, sentence):
    path = write(tmp_path, LEAST + text)
    with pytest.raises(FileRefused, match=sentence) as refusal:
        read_recipe(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "data.train lists no manifest"),
        ("data = 3\n", "data must be a section, not 3"),
        ("[data]\ntrain = 'a.jsonl'\n", "data.train must be a list"),
        ("[data]\ntrain = ['a.jsonl']\n", r"data.train\[0\] must be a section"),
        ("[data]\ntrain = [{ weight = 3 }]\n", r"data.train\[0\] is incomplete.*path"),
        ("[data]\ntrain = [{ pat = 'a' }]\n", r'did you mean "data.train\[0\].path"'),
        (LEAST + "speed_range = 0.6\n", r"data.speed_range must be in 0\.\.0\.5, not 0.6"),
        (LEAST + "batch_size = 0\n", "data.batch_size must be at least 1"),
        (LEAST + "crop_seconds = 0.001\n", "crop_seconds must be at least one frame"),
        ("[data", "is not TOML"),
    ],
)
def test_mistakes_in_the_data(tmp_path, text, sentence):
    with pytest.raises(FileRefused, match=sentence):
        read_recipe(write(tmp_path, text))


def test_files_that_are_no_recipes_are_refused(tmp_path):
    with pytest.raises(FileRefused, match="cannot be read"):
        read_recipe(tmp_path / "absent.toml")
    with pytest.raises(FileRefused, match="cannot be read"):
        read_recipe(tmp_path)
    (tmp_path / "audio.toml").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(FileRefused, match="is not TOML"):
        read_recipe(tmp_path / "audio.toml")


@pytest.mark.parametrize("change", ["steps=3", "train.steps", "=3", "train=3"])
def test_changes_that_name_no_setting_are_bad_arguments(tmp_path, change):
    with pytest.raises(ValueError, match=r"write section\.key=value") as error:
        read_recipe(write(tmp_path, LEAST), [change])
    assert not isinstance(error.value, FileRefused)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("loss.mel_shrt=2", 'did you mean "loss.mel_short"'),
        ("train.steps=many", "train.steps must be a whole number, not 'many'"),
        ("train.devices=5", "must be a multiple of train.devices"),
    ],
)
def test_wrong_changes_to_a_right_file_are_bad_arguments(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read_recipe(write(tmp_path, LEAST), [change])
    assert not isinstance(error.value, FileRefused)
    with pytest.raises(FileRefused):  # here the file is wrong too
        read_recipe(write(tmp_path, LEAST + "[train]\nsteps = 0\n"), [change])


def test_every_setting_is_documented():
    """A docstring under each field: the source has as many as there are fields."""
    import ast
    import inspect

    import audiovq.recipe

    tree = ast.parse(inspect.getsource(audiovq.recipe))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for item, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(item, ast.AnnAssign) and node.name != "Recipe":
                    assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(item.target)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_the_recipes_of_the_project_are_valid(path):
    recipe = read_recipe(path)
    assert recipe.train.autoencoder_steps < recipe.train.steps
    assert recipe.card["name"].startswith("audiovq-16khz")
    for manifest in recipe.data.train:
        assert manifest.path.startswith(f"data/{path.parent.name}/")
