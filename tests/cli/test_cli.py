from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from genomepred.cli import _COMMANDS
from genomepred.errors import DeviceError
from tests.cli.reference import commands, reference
from tests.helpers import LAMBDA, ROOT, Ended, genomepred, invoke, python


def one_line(done: Ended) -> str:
    """The error of a failed command: exactly one line, and nothing on stdout."""
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("genomepred: error: ")
    return lines[0]


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def out(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "out"
    genomepred("predict", "--model", model, "--out", folder, "--stride", 50, LAMBDA)
    return folder


def test_importing_and_help_load_nothing_heavy():
    code = (
        "import sys, genomepred, genomepred.cli; from click.testing import CliRunner; "
        "result = CliRunner().invoke(genomepred.cli.cli, ['--help']); assert not result.exception; "
        "heavy = ('torch', 'numba', 'numpy', 'h5py', 'pandas', 'genomepred.cli.predict'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_the_list_of_commands_has_a_whole_line_each():
    listed = python("-m", "genomepred", "--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == list(_COMMANDS)
    assert all(line.endswith(".") and not line.endswith("..") for line in listed)


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=str)
def test_every_command_and_option_has_help(path, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{' '.join(path)} {parameter.name}"
            told = parameter.required or parameter.show_default or parameter.multiple
            assert told or "default" in parameter.help or parameter.is_flag, (
                f"{' '.join(path)} {parameter.name} does not tell its default"
            )


def test_the_same_option_means_the_same_everywhere():
    texts: dict[str, set[tuple[str | None, object]]] = {}
    for path, command in commands():
        if path[1] in ("predict", "plan"):
            for option in command.params:
                if isinstance(option, click.Option):
                    texts.setdefault(option.opts[0], set()).add((option.help, option.default))
    assert all(len(variants) == 1 for variants in texts.values())


def test_a_device_is_named_alike_everywhere(model):
    told = {}
    for path, command in commands():
        for option in command.params:
            if option.name == "device":
                told[" ".join(path[1:])] = (option.help, option.default)
    assert told.keys() >= {"predict", "plan", "train", "evaluate", "models check", "explain ism"}
    assert len(set(told.values())) == 1
    for arguments in (
        ("models", "check", model),
        ("evaluate", "--model", model, "--data", __file__, "--out", "out"),
        ("train", "--model", "linear", "--data", __file__, "--out", "out"),
        ("explain", "ism", "--model", model, "--input", __file__, "--out", "out"),
    ):
        error = invoke(*arguments, "--device", "tpu").exception
        assert isinstance(error, DeviceError)
        assert "'tpu': write auto, cpu, cuda or cuda:N" in str(error)


def test_command_reference_is_up_to_date():
    assert (ROOT / "docs" / "commands.md").read_text() == reference(), "run `make docs`"


def test_every_command_is_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [" ".join(path) for path, _ in commands() if f"{' '.join(path)}" not in readme] == []


def test_predict_verify_and_the_rest(out):
    file = out / "lambda_virus.h5"
    assert "ok" in genomepred("verify", out).stdout
    reports = json.loads(genomepred("verify", out, "--json").stdout)["result"]["genomes"]
    assert reports == [{"name": "lambda_virus", "path": str(file), "problems": []}]
    assert "48,502" in genomepred("info", file).stdout
    contig = "gi|9626243|ref|NC_001416.1|"
    table = genomepred("query", file, f"{contig}:101-300").stdout.splitlines()
    assert table[0].split("\t")[:3] == ["contig", "start", "end"]
    assert [line.split("\t")[1] for line in table[1:]] == ["50", "100", "150", "200", "250"]
    for kind, name in [("bigwig", "x.bw"), ("bedgraph", "x.bedgraph"), ("tsv", "x.tsv")]:
        genomepred("export", kind, file, "-o", out.parent / name)
        assert (out.parent / name).stat().st_size > 1000
    genomepred("plot", file, f"{contig}:1-20,000", "-o", out.parent / "x.png")
    assert (out.parent / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "no shards wait" in genomepred("merge", out).stderr


def test_plan_as_text_and_json(model, tmp_path):
    arguments = ("plan", LAMBDA, "--model", model, "--out", tmp_path / "o", "--stride", 500)
    text = genomepred(*arguments).stdout
    assert "samples the genome" in text
    assert "kernels: kmers, direct\n" in text
    assert "kernels: reference\n" in genomepred(*arguments, "--kernels", "reference").stdout
    plan = json.loads(genomepred(*arguments, "--json").stdout)["result"]
    assert plan["numerics"]["kernels"] == ["kmers", "direct"]
    assert plan["genomes"][0]["rows"] == -(-(48502 - 100) // 500) + 1
    assert not (tmp_path / "o").exists()


def test_predict_as_json_tells_outcomes(model, tmp_path):
    (tmp_path / "bad.fa").write_text("no header")
    done = genomepred(
        *("predict", LAMBDA, tmp_path / "bad.fa", "--model", model, "--out", tmp_path / "o"),
        *("--stride", 500, "--json"),
        code=14,
    )
    outcomes = {g["name"]: g["outcome"] for g in json.loads(done.stdout)["result"]["genomes"]}
    assert outcomes == {"lambda_virus": "finished", "bad": "failed"}
    assert "1 of 2 genomes failed" in done.stderr


def test_doctor():
    report = json.loads(genomepred("doctor", "--json").stdout)["result"]
    assert report["versions"]["torch"]
    assert "cpu" in report["devices"]
    assert set(report["choices"]) == {"device", "precision", "kernels", "workers"}


def test_doctor_tells_which_kernel_each_shape_gets_and_why():
    report = json.loads(genomepred("doctor", "--json").stdout)["result"]
    text = " ".join(genomepred("doctor").stdout.split())
    assert report["versions"]["triton"] in text
    found = report["kernels"]["cpu"]
    assert found["obstacle"] is None
    rules = [(rule["operation"], rule["implementation"]) for rule in found["rules"]]
    assert rules[0] == ("codes_conv", "kmers")
    assert {("conv_block", "direct"), ("conv_block", "onednn")} < set(rules)
    for rule in found["rules"]:
        assert f"{rule['operation']}, {rule['shapes']}: {rule['implementation']}" in text
        assert " ".join(rule["why"].split()) in text


def test_doctor_of_a_gpu_says_what_is_missing(monkeypatch):
    from genomepred.kernels import dispatch

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr("genomepred.cli.doctor._devices", dict)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    there = invoke("doctor").output
    assert "sm_90 (H100, H200)" in there
    assert "conv_block, all others: cudnn" in there
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    absent = invoke("doctor").output
    assert "need triton, which is not installed" in " ".join(absent.split())
    assert "auto uses convolutions of torch" in " ".join(absent.split())


@pytest.mark.parametrize(
    "command",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("doctor", "plan")), "predict"],
)
def test_on_a_cpu_nothing_imports_triton(command, model, tmp_path):
    run = ("--model", model, "--out", tmp_path / "o", "--stride", 500, "--jobs", 1)
    arguments = [command] if command == "doctor" else [command, LAMBDA, *run, "--device", "cpu"]
    code = (
        "import sys; from genomepred.cli import cli; "
        "cli.main(sys.argv[1:], standalone_mode=False); print('triton' in sys.modules)"
    )
    assert python("-c", code, *arguments).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", ["verify", "merge", "status"])
def test_looking_at_a_run_loads_no_compiler(command, out):
    code = (
        "import sys; from genomepred.cli import cli; "
        "cli.main(sys.argv[1:], standalone_mode=False); "
        "print([m for m in ('torch', 'numba', 'scipy', 'pandas') if m in sys.modules])"
    )
    done = python("-c", code, command, out)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("wrong", [(), ("--shard", "9/2"), ("--stride", "no"), ("--nothing",)])
def test_wrong_usage_loads_nothing_heavy(wrong):
    code = (
        "import sys; from genomepred.cli import cli\n"
        "try: cli.main(['predict', 'g.fa', '--model', 'ctcf', *sys.argv[1:]])\n"
        "except SystemExit as end: print(end.code)\n"
        "print([m for m in ('torch', 'numba', 'numpy', 'h5py') if m in sys.modules])"
    )
    assert python("-c", code, *wrong).stdout.splitlines() == ["2", "[]"]


@pytest.mark.parametrize(
    "wrong",
    [
        ("predict", "no.fa"),
        ("plan", "no.fa"),
        ("plan", "g.fa", "--regions", "no.bed"),
        ("predict", "g.fa", "--jobs", "2", "--cluster", "auto"),
        ("predict", "g.fa", "--model", "no-such"),
        ("effects", "--genomes", "g.fa", "--variants", "v.vcf", "--model", ""),
        ("explain", "ism", "--input", "g.fa", "--model", "no-such"),
        ("explain", "filters", "--input", ""),
    ],
)
def test_a_wrong_path_or_option_is_told_before_anything_heavy_is_loaded(
    wrong, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.fa").write_text(">a\nACGT\n")
    code = (
        "import sys; from genomepred.cli import cli\n"
        "try: cli.main(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print([m for m in ('torch', 'numba', 'h5py') if m in sys.modules])"
    )
    model = () if "--model" in wrong else ("--model", "ctcf")
    done = python("-c", code, *wrong, *model, "--out", "o")
    kind, loaded = done.stdout.splitlines()
    assert kind.endswith("Error")
    assert loaded == "[]"


def test_errors_are_one_line_with_their_own_exit_code(model, out, tmp_path):
    base = ("--model", model, "--out", tmp_path / "o")
    (tmp_path / "bad.fa").write_text("no header")
    cases = [
        (4, ("predict", tmp_path / "absent.fa", *base), "no such file"),
        (4, ("predict", tmp_path / "bad.fa", *base), "bad.fa"),
        (6, ("predict", LAMBDA, "--model", "nothing", "--out", tmp_path / "o"), "nothing"),
        (7, ("predict", LAMBDA, "--model", model, "--out", out, "--stride", 9), "stride 50"),
        (8, ("info", LAMBDA), "lambda_virus"),
        (10, ("verify", tmp_path / "absent"), "absent"),
        (12, ("predict", LAMBDA, *base, "--device", "cuda:99"), "cuda:99"),
        (12, ("predict", LAMBDA, *base, "--kernels", "triton"), "triton kernels do not run on"),
        (
            *(7, ("predict", LAMBDA, *base[:3], out, "--stride", 50, "--kernels", "reference")),
            "kernels kmers,direct; now kernels reference",
        ),
    ]
    for code, arguments, named in cases:
        assert named in one_line(genomepred(*arguments, code=code))


def test_usage_errors_are_clicks_own():
    assert "no genomes" in genomepred("predict", "--model", "ctcf", "--out", "y", code=2).stderr
    wrong = ("predict", "g.fa", "--model", "ctcf", "--out", "y", "--shard", "0/3")
    assert "write I/N" in genomepred(*wrong, code=2).stderr


def test_a_reader_that_has_seen_enough_is_no_error(out):
    command = [sys.executable, "-m", "genomepred", "export", "tsv", str(out / "lambda_virus.h5")]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_scheduler_that_ends_the_job_gets_an_answer(model, tmp_path):
    fasta = tmp_path / "long.fa"  # of more work than anybody waits for
    fasta.write_text(">a\n" + "ACGTTGCAAC" * 1_000_000 + "\n")
    command = [sys.executable, "-m", "genomepred", "predict", str(fasta), "--stride", "1"]
    process = subprocess.Popen(
        [*command, "--model", str(model), "--out", str(tmp_path / "o"), "--jobs", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "o" / "run.json").exists():
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143
    assert said.strip().endswith("genomepred: terminated; run the same command again to continue")


def test_things_that_are_no_files_are_refused_and_not_waited_for(model, tmp_path):
    fifo = tmp_path / "fifo.fa"
    os.mkfifo(fifo)
    base = ("--model", model, "--out", tmp_path / "o")
    one_line(genomepred("predict", fifo, *base, code=4))
    one_line(genomepred("predict", LAMBDA, *base, "--regions", fifo, code=5))
    one_line(genomepred("info", fifo, code=8))


def test_an_export_never_replaces_its_own_input(out):
    file = out / "lambda_virus.h5"
    before = file.read_bytes()
    for kind in ("tsv", "bedgraph", "bigwig"):
        done = genomepred("export", kind, file, "-o", file, code=10)
        assert "is an input of this command" in one_line(done)
    assert file.read_bytes() == before


def test_debug_shows_the_traceback(tmp_path):
    done = python("-m", "genomepred", "verify", tmp_path / "absent", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode == 1


def test_verify_finds_damage_and_says_what_to_do(model, tmp_path):
    genomepred("predict", LAMBDA, "--model", model, "--out", tmp_path, "--stride", 100)
    file = tmp_path / "lambda_virus.h5"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    done = genomepred("verify", tmp_path, code=15)
    assert "altered" in done.stdout
    assert "run predict again" in done.stderr
    file.unlink()
    genomepred("verify", tmp_path, code=15)
    genomepred("predict", LAMBDA, "--model", model, "--out", tmp_path, "--stride", 100)
    genomepred("verify", tmp_path)
