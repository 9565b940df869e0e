from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt_finetune.errors import InputError
from gpt_finetune.report import read_run, redact, summary, write_curves, write_report
from gpt_finetune.report.curves import _draw_baselines, panels_of, running_mean
from gpt_finetune.report.redaction import HIDDEN

pytestmark = pytest.mark.drawn

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
SAMPLES = [
    {"step": 1000, "prompt": "ROMEO:", "text": "\n  early\n", "seed": 0, "temperature": 0.8},
    {"step": 2000, "prompt": "ROMEO:", "text": "\n  <script>alert('&')</script>\x07\ud800 end", "seed": 0},
    {"step": 2000, "prompt": "春眠不觉晓，", "text": "处处闻啼鸟。\u2028夜来风雨声", "seed": 0},
]
RECORD: dict[str, Any] = {
    "recipe": "pretrain",
    "title": "quick <b>start</b>",
    "command": f"accelerate launch recipes/pretrain.py --hub_token {TOKEN} out=/home/alice/runs/q HF_TOKEN={TOKEN}",
    "created": "2026-03-02T10:11:12+00:00",
    "status": "finished",
    "duration_s": 312.4,
    "environment": {"python": "3.11.7", "cpu": "EPYC", "threads": 2, "cache": "/root/.cache"},
    "model": {"parameters": 4_215_808, "parameters_embedding": 1_048_576, "flops_per_token": 2.4e7, "preset": "tiny"},
    "data": {
        "sources": ["/Users/alice/plays.txt", "hub:poems/tang"],
        "ledger": {
            "sources": [
                {"source": "/Users/alice/plays.txt", "documents": {"total": 60}, "bytes": {"total": 1115394}},
                {"source": "hub:poems/tang", "documents": {"total": 40}, "tokens": {"total": 1234}},
            ],
            "total": {
                "source": "total",
                "documents": {"total": 100, "train": 90, "validation": 5, "empty": 4, "duplicate": 1},
                "tokens": {
                    "total": 5000,
                    "trained": 4000,
                    "validation": 900,
                    "masked": 100,
                    "dropped": 0,
                    "padding": 7,
                },
            },
        },
        "validation_bytes": 111540,
    },
    "figures": {"eval_loss": 3.7123, "perplexity": 40.94, "bits_per_byte": 1.3021, "mfu": 0.512, "peak_memory_mb": 812},
    "baselines": {"xz -9e": {"bits_per_byte": 1.65}, "gzip": {"bits_per_byte": 3.1}},
}


def metrics(steps: int = 60) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        rate = 20_000.0 + step
        figures = {"loss": 10 / step, "bits_per_byte": 4 / step, "learning_rate": 1e-3, "grad_norm": 5 / step}
        speed = {"tokens_per_second": rate, "mfu": rate * 2e-5, "peak_memory_mb": 800}
        records.append(
            {"step": step, "split": "train", "tokens": step * 4096, "elapsed_s": step / 2, **figures, **speed}
        )
    return [*records, {"step": steps, "split": "eval", "loss": 3.5, "perplexity": 33.1, "bits_per_byte": 1.25}]


def fill(
    folder: Path,
    record: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    tail: str = "",
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if record is not None:
        (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    if rows is not None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text + tail, encoding="utf-8")
    if samples is not None:
        # As the recipes write them; only a lone surrogate needs its escape.
        lines = [json.dumps(sample, ensure_ascii="\ud800" in str(sample.get("text"))) for sample in samples]
        text = "".join(line + "\n" for line in lines)
        (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fill(tmp_path_factory.mktemp("runs") / "whole", RECORD, metrics(), SAMPLES, tail='{"step": 61, "lo')
    (folder / "config.yaml").write_text(f"# 说明 <i>\ntrain:\n  seed: 7\n  hub_token: {TOKEN}\n  eos_token: </s>\n")
    write_report(folder)
    return folder


class Page(HTMLParser):
    """Collects a page's tags and the text under each, by tag and by class."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # (path of tags and classes, text)
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(f"{tag}.{dict(attrs).get('class') or ''}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop().split(".")[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(("/".join(self._open), data))

    def under(self, *parts: str) -> str:
        return "".join(text for path, text in self.texts if all(part in path for part in parts))


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("figure", "side"), [(0.88, "top"), (0.6, "bottom")])
def test_a_baselines_name_does_not_hide_the_figure_just_above_it(figure: float, side: str) -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.plot([240], [figure], marker="o")
    _draw_baselines(axis, {"TF-IDF": 0.85, "majority": 0.5})
    first, _ = axis.texts
    assert (first.get_text(), first.get_verticalalignment()) == ("TF-IDF  0.850", side)


def test_page_leads_with_the_figure_beside_its_baselines(whole: Path) -> None:
    shown = page(whole)
    assert "1.302" in shown.under("p.headline", "strong")
    assert "on 112 kB of held-out text, 21.1% below xz -9e." in shown.under("p.sentence")
    assert shown.under("div.bars").split() == ["quick", "<b>start</b>", "1.302", "xz", "-9e", "1.650", "gzip", "3.100"]
    assert "quick <b>start</b>" in shown.under("h1")
    figures = " ".join(shown.under("dl.figures").split())
    for expected in ("Validation loss 3.712", "Parameters 4.22M", "Time 5 min 12 s", "Throughput 20k", "51.2%"):
        assert expected.replace(" ", "") in figures.replace(" ", "")


def test_samples_come_latest_first_and_escaped(whole: Path) -> None:
    shown = page(whole)
    headings = [text for path, text in shown.texts if text.startswith("Step ")]
    assert headings == ["Step 2,000", "Step 1,000"]
    continuations = [text for path, text in shown.texts if "span.text" in path]
    assert continuations[0] == "\n  <script>alert('&')</script>␇\ufffd end"
    assert continuations[1] == "处处闻啼鸟。\u2028夜来风雨声"
    assert continuations[2] == "\n  early\n"
    prompts = [text for path, text in shown.texts if "pre." in path and "span.prompt" in path]
    assert prompts == ["ROMEO:", "春眠不觉晓，", "ROMEO:"]
    assert not [tag for tag, _ in shown.tags if tag == "script"]


def test_ledger_rows_add_up(whole: Path) -> None:
    rows = [row.split() for row in page(whole).under("table.ledger").split("\n") if row.strip()]
    assert rows[:4] == [["documentstokens"], ["in1005,000"], ["trained904,000"], ["validation5900"]]
    assert rows[4:] == [["masked100"], ["dropped50"], ["duplicate1"], ["empty4"]]
    assert "in = trained + validation + masked + dropped. Beside these: 7 padding tokens added." in page(whole).under(
        "p"
    )


def test_sources_tell_what_they_gave(whole: Path) -> None:
    rows = [row.strip() for row in page(whole).under("table.facts").split("\n") if row.strip()]
    assert rows[:2] == ["~/plays.txt60 documents · 1.12 MB", "hub:poems/tang40 documents · 1.23k tokens"]


def test_page_needs_no_network(whole: Path) -> None:
    html = (whole / "report.html").read_text(encoding="utf-8")
    for tag, attributes in page(whole).tags:
        assert tag not in ("link", "script", "iframe", "object", "base")
        for name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in html
    assert "url(http" not in html
    assert "http" not in html


def test_inline_drawings_follow_the_page_colours_and_share_no_ids(whole: Path) -> None:
    shown = page(whole)
    assert [attrs["aria-label"] for tag, attrs in shown.tags if tag == "svg"] == [
        "Loss",
        "Bits per byte",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Peak memory",
    ]
    ids = [attrs["id"] for _, attrs in shown.tags if attrs.get("id")]
    assert len(ids) == len(set(ids)) > 0
    used = {attrs["xlink:href"][1:] for _, attrs in shown.tags if attrs.get("xlink:href")}  # type: ignore[index]
    assert used <= set(ids)
    assert "var(--train)" in (whole / "report.html").read_text(encoding="utf-8")
    assert "xz -9e" in shown.under("svg")


def test_curves_are_a_real_picture(whole: Path) -> None:
    import matplotlib.image

    picture = matplotlib.image.imread(whole / "curves.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1200
    assert picture.std() > 0.02


def test_the_page_is_a_function_of_the_folder(whole: Path) -> None:
    before = (whole / "report.html").read_bytes()
    assert write_report(whole).read_bytes() == before


def test_half_a_line_and_unknown_keys_are_survived(tmp_path: Path) -> None:
    folder = fill(tmp_path, {}, [{"step": 1, "loss": 2.0, "news": [1]}], tail='{"step": 2, "loss": 1.')
    run = read_run(folder)
    assert run.series("loss") == ([1.0], [2.0])
    assert "1 unreadable line was left out of metrics.jsonl" in run.notes[0]
    write_report(folder)
    assert "1 unreadable line" in page(folder).under("div.notes")


@pytest.mark.parametrize(
    ("record", "rows", "samples"),
    [
        (None, None, None),
        ({}, [], []),
        ({"status": "running"}, [{"step": 1, "loss": 2.5, "learning_rate": 0, "tokens": 9, "grad_norm": 0}], None),
        ({"status": "failed", "figures": None, "data": [1], "environment": "?"}, [{"step": 3, "split": "eval"}], [{}]),
        ({"figures": {"eval_loss": float("nan")}}, [{"step": s, "loss": float("nan")} for s in range(50)], None),
        ({"model": {"parameters": "many", "flops_per_token": "?"}, "command": ["a"], "created": 5}, [], [{"text": 5}]),
        ({"baselines": {"a $x^2$ <b>": {"bits_per_byte": 1}, "b": 3}}, [{"step": 1, "bits_per_byte": 0.5}], None),
    ],
)
def test_what_is_missing_or_odd_is_left_out(tmp_path: Path, record: Any, rows: Any, samples: Any) -> None:
    folder = fill(tmp_path, record, rows, samples)
    write_report(folder)
    assert page(folder).under("h1") == tmp_path.name
    assert (folder / "curves.png").stat().st_size > 1000


def test_nan_is_told_and_not_drawn(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": float("inf")}]
    run = read_run(fill(tmp_path, {"error": "FloatingPointError: loss"}, rows))
    assert run.series("loss") == ([1.0], [2.0])
    assert run.notes == [
        "The run stopped: FloatingPointError: loss",
        "The loss was not a finite number in 2 records, first at step 2.",
    ]


def test_a_resumed_run_overwrites_its_repeated_steps(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "loss": 3},
        {"step": 2, "loss": 9},
        {"step": 2, "loss": 2},
        {"step": 2, "split": "eval", "loss": 5},
    ]
    sample: dict[str, Any] = {"step": 2, "prompt": "a", "seed": 0}
    run = read_run(fill(tmp_path, None, rows, [sample | {"text": "old"}, sample | {"text": "new"}]))
    assert run.series("loss") == ([1.0, 2.0], [3.0, 2.0])
    assert run.series("loss", "eval") == ([2.0], [5.0])
    assert [sample["text"] for sample in run.samples] == ["new"]


def test_a_killed_run_shows_its_last_figures(tmp_path: Path) -> None:
    rows = metrics()
    figures = read_run(fill(tmp_path, {"status": "running"}, rows)).figures
    assert figures["bits_per_byte"] == 1.25
    assert figures["eval_loss"] == 3.5
    assert figures["tokens_per_second"] == 20_030.5  # the median


def test_utilisation_gets_its_own_panel_only_when_it_says_more(tmp_path: Path) -> None:
    def titles(mfu: list[float]) -> list[str]:
        rows: list[dict[str, Any]] = [
            {"step": s, "tokens_per_second": 1000, "mfu": value} for s, value in enumerate(mfu)
        ]
        return [panel.title for panel in panels_of(read_run(fill(tmp_path, None, rows)))]

    assert titles([0.5, 0.5]) == ["Throughput"]
    assert titles([0.5, 0.25]) == ["Throughput", "Model FLOPs utilisation"]


def test_running_mean() -> None:
    assert running_mean([4.0, 1.0]) == [4.0, 1.0]
    smooth = running_mean([0.0, 3.0] * 20)  # window 3
    assert smooth[0] == 1.5
    assert smooth[1:39] == pytest.approx([1.0, 2.0] * 19)


@pytest.mark.parametrize(
    "account",
    [
        {"documents": {"total": 9, "train": 6, "too_long": 1}},
        {"documents": {"in": 9, "trained": 6, "dropped": {"too_long": 1}}},
    ],
)
def test_ledger_tells_when_it_does_not_balance(tmp_path: Path, account: dict[str, Any]) -> None:
    books = [
        summary.ledger(read_run(fill(tmp_path, {"data": {"ledger": ledger}})))
        for ledger in (account, {"total": account})
    ]
    assert books[0] == books[1]
    assert books[0] is not None
    assert books[0].columns == ["documents"]
    assert [(row.label, row.is_reason, row.cells) for row in books[0].rows] == [
        ("in", False, ["9"]),
        ("trained", False, ["6"]),
        ("dropped", False, ["1"]),
        ("too long", True, ["1"]),
    ]
    assert books[0].balance == "The books do not balance: documents -2."


@pytest.mark.parametrize(
    ("key", "unit"), [("chrf", "chrF, of 100"), ("bits_per_byte", "bits per byte"), ("mse", "mean squared error")]
)
def test_verdict_says_what_its_figure_is(key: str, unit: str, tmp_path: Path) -> None:
    assert summary.verdict(read_run(fill(tmp_path, {"figures": {key: 1.5}}))).unit == unit


def test_verdict_knows_which_way_is_better(tmp_path: Path) -> None:
    record = {
        "figures": {"eval_loss": 1.0, "accuracy": 0.9},
        "baselines": {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.6}},
    }
    verdict = summary.verdict(read_run(fill(tmp_path, record)))
    assert (verdict.value, verdict.unit) == ("0.900", "accuracy")
    assert verdict.sentence == "on held-out text, 50.0% above b."
    assert [bar.name for bar in verdict.bars] == [tmp_path.name, "b", "a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"login --token {TOKEN}", f"login --token {HIDDEN}"),
        (f"x={TOKEN}&y=1", f"x={HIDDEN}&y=1"),
        ("hub_token: abc", f"hub_token: {HIDDEN}"),
        ('{"api_key": "s3cret", "n": 1}', f'{{"api_key": "{HIDDEN}", "n": 1}}'),
        ("--wandb.api-key s3cret -x", f"--wandb.api-key {HIDDEN} -x"),
        ("HF_TOKEN=abc run", f"HF_TOKEN={HIDDEN} run"),
        ("https://bob:pw@host/x", f"https://{HIDDEN}@host/x"),
        ("/home/alice/runs --out=/root/x '/Users/bob'", "~/runs --out=~/x '~'"),
        (r"C:\Users\bob\runs", r"~\runs"),
        ("hub_token: null\neos_token: </s>\nmax_tokens: 5", "hub_token: null\neos_token: </s>\nmax_tokens: 5"),
        ("hf_transfer /data/home/x s3://b/home/y", "hf_transfer /data/home/x s3://b/home/y"),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


def test_no_credential_or_home_folder_reaches_the_page(whole: Path) -> None:
    html = (whole / "report.html").read_text(encoding="utf-8")
    assert "hf_" not in html
    for home in ("alice", "/root"):
        assert home not in html
    shown = page(whole)
    assert shown.under("pre.card config") == (
        f"# 说明 <i>\ntrain:\n  seed: 7\n  hub_token: {HIDDEN}\n  eos_token: </s>\n"
    )
    assert shown.under("pre.card command") == (
        f"accelerate launch recipes/pretrain.py --hub_token {HIDDEN} out=~/runs/q HF_TOKEN={HIDDEN}"
    )


def test_secret_keys_and_samples_are_redacted(tmp_path: Path) -> None:
    samples = [{"step": 1, "prompt": "/home/alice", "text": f"my token is {TOKEN}"}]
    run = read_run(fill(tmp_path, {"environment": {"HF_TOKEN": "abc", "eos_token": "x"}}, None, samples))
    assert run.record["environment"] == {"HF_TOKEN": HIDDEN, "eos_token": "x"}
    assert run.samples[0]["text"] == f"my token is {HIDDEN}"
    assert run.samples[0]["prompt"] == "/home/alice"  # samples stay as they came


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (summary.count, 853, "853"),
        (summary.count, 999.9, "1k"),
        (summary.count, 1_048_576, "1.05M"),
        (summary.size, 111_540, "112 kB"),
        (summary.size, 5e9, "5 GB"),
        (summary.size, 12, "12 B"),
        (summary.duration, 3.21, "3.2 s"),
        (summary.duration, 60, "1 min"),
        (summary.duration, 90_061, "1 d 1 h"),
        (summary.moment, "2026-03-02T10:11:12+00:00", "2026-03-02 10:11 UTC"),
        (summary.moment, "soon", "soon"),
        (summary.fixed, 0.00012, "0.00012"),
        (summary.fixed, 1.30251, "1.303"),
    ],
)
def test_numbers_are_written_for_people(write: Any, value: Any, expected: str) -> None:
    assert write(value) == expected


def test_no_folder_is_an_input_error(tmp_path: Path) -> None:
    for write in (write_report, write_curves):
        with pytest.raises(InputError, match="there is no such folder"):
            write(tmp_path / "nowhere")
