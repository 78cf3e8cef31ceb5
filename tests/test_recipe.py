"""Recipe files: every setting typed, every mistake one clear sentence."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from tiny import TINY

from audiovq.config import CODEBOOK_SETTINGS, ModelConfig
from audiovq.files import FileRefused
from audiovq.training.recipe import (
    DataSettings,
    LossSettings,
    ManifestSettings,
    Recipe,
    TrainSettings,
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


def test_sizes_that_are_not_said_are_those_of_the_model_to_go_on_from(tmp_path, tiny_folder):
    path = write(tmp_path, LEAST + f"[train]\ninitial_model = '{tiny_folder}'\n")
    assert read_recipe(path).model == TINY
    assert read_recipe(path, ["model.unit_blocks=1"]).model == replace(TINY, unit_blocks=1)
    anew = read_recipe(path, ["train.new_codebooks=true"]).model
    usual = ModelConfig()
    books = {name: getattr(usual, name) for name in CODEBOOK_SETTINGS}
    assert anew == replace(TINY, **books)
    # What a run goes on from may be gone.
    assert read_recipe(path, ["train.initial_model=gone"]).model == usual


def test_changes_override_the_file(tmp_path):
    path = write(tmp_path, LEAST + "[train]\nsteps = 5\nautoencoder_steps = 2\n")
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
        ("[train]\nthreads = -1\n", "train.threads must be at least 0, not -1"),
        ("[train]\nautoencoder_steps = -1\n", "autoencoder_steps must be at least 0, not -1"),
        ("[train]\nadversarial_items = 0\n", "adversarial_items must be at least 1, not 0"),
        ("[train]\nlearning_rate = -1e-4\n", "learning_rate must be above 0 and at most 1, not"),
        ("[train]\nlearning_rate = nan\n", "learning_rate must be above 0 and at most 1, not nan"),
        ("[train]\nema_decay = 2\n", r"train.ema_decay must be in 0\.\.1, not 2"),
        ("[train]\ndecay_share = -0.1\n", r"train.decay_share must be in 0\.\.1, not -0.1"),
        ("[train]\nquantizer_dropout = 1.5\n", r"quantizer_dropout must be in 0\.\.1, not 1.5"),
        ("[train]\nclip_norm = 0\n", "train.clip_norm must be above 0, not 0"),
        ("[train]\nclip_norm = inf\n", "train.clip_norm must be above 0, and finite, not inf"),
        ("[train]\nseed = -1\n", "train.seed must be in 0"),
        ('[train]\naccelerator = "tpu"\n', 'train.accelerator must be "auto", "cpu"'),
        ("[loss]\nunit_shift = -1\n", "loss.unit_shift must be at least 0, not -1"),
        ("[loss]\nmel = -2\n", "loss.mel must be at least 0, not -2"),
        ("[loss]\nwaveform = 1" + "0" * 400 + "\n", "loss.waveform is too large a number"),
        ("[card]\nmade = 2024-05-01\n", 'card.made is a date; .* write "2024-05-01"'),
        ("[card]\nlist = [[07:30:00]]\n", r"card.list\[0\]\[0\] is a time"),
        ("[card]\nloss = inf\n", "card.loss must be a finite number, not inf"),
        ("[card]\na = " + "[" * 40 + "]" * 40 + "\n", "nested too deeply for a card"),
        ("[card]\na = " + "[" * 9000 + "]" * 9000 + "\n", "nested too deeply"),
        ("[card]\n" + "a." * 9000 + "b = 1\n", "nested too deeply"),
        ("[" + "a." * 60_000 + "b]\nc = 1\n", "nested too deeply"),
        ("#" * 2_000_000, "too long"),
        ("[train]\ndevices = 5\n", r"multiple of train.devices \(5\), not 12"),
        ("[loss]\nunit_gradient = 1.5\n", r"loss.unit_gradient must be in 0\.\.1, not 1.5"),
        ('[train]\nlearn = "encoder"\n', 'train.learn must be "all", "decoder", "sound" or'),
        ('[train]\nlearn = "decoder"\n', "name it as train.initial_model"),
        ("[loss]\nconsistency = 1.0\n", "name that as train.initial_model"),
        ('[train]\nlearn = "units"\ninitial_model = "x"\n', "model.level_frames"),
        ('[train]\nlearn = "sound"\ninitial_model = "x"\n', "leaves the units .*level_frames"),
        ("[train]\nnew_codebooks = true\n", "train.new_codebooks needs train.initial_model"),
        ("[loss]\nagreement = 1.0\n", "loss.agreement needs train.learn"),
        ("[loss]\ncode_labels = 1.0\n", "loss.code_labels needs train.learn"),
        ("[loss]\ncode_use = 1.0\n", "loss.code_use is of loss.code_labels; give both"),
        ("[train]\nheads_alone = 9\n", "train.heads_alone is of the heads on the units: it needs"),
        ("voice_range = 2.0\n", "data.voice_range is of the crops that data.augment_share"),
        ("voice_range = 13.0\n", r"data.voice_range must be in 0\.\.12, not 13"),
        ("[train]\nadversarial_from = 0\ndiscriminator_head_start = 20000\n", "never learns again"),
        (
            '[train]\nsteps = 5000\ninitial_discriminators = "runs/a"\n',
            "this run does without; leave it out",
        ),
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
        (LEAST + "crop_seconds = 1e308\n", "crop_seconds must be above 0 and at most 600, not 1e"),
        (LEAST + "crop_seconds = -1.0\n", "crop_seconds must be above 0 and at most 600, not -1"),
        (LEAST + "workers = -1\n", r"data.workers must be in 0\.\.1024, not -1"),
        (LEAST + "level_range_db = -3\n", "data.level_range_db must be in 0"),
        ("[data]\ntrain = [{ path = 'a', weight = 0 }]\n", r"train\[0\].weight must be above 0"),
        (LEAST + "crop_seconds = 0.06\n", "data.crop_seconds must be more than 0.064"),
        (
            LEAST + "labels_folder = 'a'\ncrop_seconds = 0.08\n[loss]\nunit_shift = 4\n",
            r"unit_shift must be fewer than the frames of a crop \(4\), not 4",
        ),
        (
            LEAST
            + "labels_folder = 'a'\n"
            + "[model]\nunit_blocks = 1\nspectrum_size = 512\nlevel_frames = 9\n"
            + "[train]\nlearn = 'units'\ninitial_model = 'b'\nsteps = 9\nheads_alone = 9\n",
            "heads_alone is 9 of 9 steps, after which the units never learn",
        ),
        (
            LEAST + "labels_folder = 'a'\n[train]\nlearn = 'sound'\ninitial_model = 'b'\n",
            'train.learn = "sound" leaves the units as they are',
        ),
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
        (
            "train.steps=" + "9" * 5000,
            r"train.steps must be a whole number, not '9{1,30}\.\.\.9+'\.$",
        ),
        ("train.devices=5", "must be a multiple of train.devices"),
    ],
)
def test_wrong_changes_to_a_right_file_are_bad_arguments(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read_recipe(write(tmp_path, LEAST), [change])
    assert not isinstance(error.value, FileRefused)
    with pytest.raises(FileRefused):  # here the file is wrong too
        read_recipe(write(tmp_path, LEAST + "[train]\nsteps = 0\n"), [change])


def test_a_run_that_would_end_before_its_codebooks_begin_is_refused(tmp_path):
    """What a newcomer types to see whether it works: fewer steps, and nothing else."""
    folder = next(path for path in RECIPES if path.parent.name == "folder")
    with pytest.raises(ValueError, match=r"must be fewer .*train\.autoencoder_steps=15\.") as error:
        read_recipe(folder, ["train.steps=60"])
    assert not isinstance(error.value, FileRefused)
    assert read_recipe(folder, ["train.steps=60", "train.autoencoder_steps=15"]).train.steps == 60
    started = ["train.steps=60", "train.initial_model=default", "data.cache_folder=cache"]
    assert read_recipe(folder, started).train.steps == 60


def test_every_number_and_word_states_its_range():
    """A new setting says in its type what it takes, or everything goes."""
    for kind in (ManifestSettings, DataSettings, LossSettings, TrainSettings):
        for name, plain in get_type_hints(kind).items():
            if plain in (int, float):
                rules = get_args(get_type_hints(kind, include_extras=True)[name])[1:]
                assert rules, f"{kind.__name__}.{name}"


def test_a_saved_recipe_is_read_back(tmp_path):
    recipe = read_recipe(write(tmp_path, LEAST + "[card]\nname = 'é'\n"))
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)))
    assert read_recipe(path) == recipe
    assert read_recipe(path, ["train.steps=9000"]).train.steps == 9000
    for text in ("[" * 99_999, "[1]", "{"):
        path.write_text(text)
        with pytest.raises(FileRefused):
            read_recipe(path)


def test_a_change_that_is_nested_too_deeply_is_a_bad_argument(tmp_path):
    with pytest.raises(ValueError, match="nested too deeply"):
        read_recipe(write(tmp_path, LEAST), ["card.a=" + "[" * 9000])


def test_every_setting_is_documented():
    """A docstring under each field: the source has as many as there are fields."""
    import ast
    import inspect

    import audiovq.settings
    import audiovq.training.recipe

    sources = map(inspect.getsource, (audiovq.settings, audiovq.training.recipe))
    for node in ast.parse("".join(sources)).body:
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
        # The arms of the hierarchy learn from what the bundled model learns from.
        assert manifest.path.startswith((f"data/{path.parent.name}/", "data/speech_mix/"))
