"""The page of report.py, a jinja2 template: markup, style sheet and pictures. It runs no script, and its policy allows none.

Colours are Okabe and Ito's, which colour-blind readers tell apart; each arm has a mark and a dash pattern of its own too.
"""

STYLE = """\
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #1c1e21; --muted: #5c6167; --rule: #dedfda;
  --grid: #e8e8e3; --good: #00694c; --bad: #a84300;
  --arm0: #0072b2; --arm1: #d55e00; --arm2: #009e73; --arm3: #b8568f; --arm4: #b07d00; --deaf: #6b7076; }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1b1e22; --ink: #eceded; --muted: #a3a9b0;
  --rule: #33383e; --grid: #2a2e33; --good: #4fd3ac; --bad: #ff9a5c;
  --arm0: #56b4e9; --arm1: #f0803c; --arm2: #1fc796; --arm3: #cc79a7; --arm4: #f0e442; --deaf: #a9afb6; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
main { padding-top: 2.5rem; }
h1 { font-size: clamp(1.6rem, 1.2rem + 2vw, 2.25rem); line-height: 1.15; letter-spacing: -.015em; margin: 0 0 .75rem;
  text-wrap: balance; }
h2 { font-size: 1.3rem; line-height: 1.25; letter-spacing: -.01em; margin: 3.25rem 0 .4rem; padding-top: 1.25rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .4rem 0 .8rem; max-width: 44rem; overflow-wrap: anywhere; }
.muted, small, figcaption { color: var(--muted); font-size: .875rem; }
.note { border-left: 4px solid var(--arm4); background: var(--card); padding: .75rem 1rem; border-radius: 0 .5rem .5rem 0;
  margin: 1rem 0; }
.arm0 { --tone: var(--arm0); } .arm1 { --tone: var(--arm1); --dash: 7 3; } .arm2 { --tone: var(--arm2); --dash: 2 3; }
.arm3 { --tone: var(--arm3); --dash: 9 3 2 3; } .arm4 { --tone: var(--arm4); --dash: 12 4; }
.deaf { --tone: var(--deaf); --dash: 4 4; } .base { --tone: var(--muted); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 .5rem;
  padding: 0; list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--rule); border-top: 3px solid var(--tone); border-radius: .5rem;
  padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; font-weight: 650; }
.cards small { display: block; }
table, b, small, text { font-variant-numeric: tabular-nums; }
:focus-visible { outline: 3px solid var(--arm0); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--rule); border-radius: .5rem; background: var(--card); }
.hint { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; line-height: 1.3; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 500; white-space: normal; }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 1px solid var(--rule); }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--grid); }
tbody th[colspan] { padding-top: 1.1rem; font-size: .8125rem; font-weight: 650; color: var(--muted);
  border-bottom: 1px solid var(--rule); }
td small { display: block; }
td.n, td.base { color: var(--muted); }
table.words th, table.words td { text-align: left; }
table.words td:nth-last-child(-n+2), table.words th:nth-last-child(-n+2) { text-align: right; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; margin: .75rem 0 1rem; max-width: none; font-size: .9375rem; }
.key { display: inline-flex; align-items: center; gap: .45rem; white-space: nowrap; vertical-align: bottom; }
svg { display: block; overflow: visible; flex: none; }
svg text { fill: var(--muted); font: .8125rem system-ui, sans-serif; }
.mark { fill: var(--tone); stroke: var(--tone); stroke-width: 1; }
.mark.deaf, .deaf .mark { fill: var(--page); stroke-width: 2; }
.line { fill: none; stroke: var(--tone); stroke-width: 2; stroke-dasharray: var(--dash, none); stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.whisker { stroke: var(--tone); stroke-width: 2; opacity: .65; }
.majority { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 3 2; }
.grid { stroke: var(--grid); }
.dots h3 { margin: 1.25rem 0 .35rem; font-size: .8125rem; color: var(--muted); }
.dots .row { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1.25rem; align-items: center;
  border-top: 1px solid var(--grid); padding: .15rem .75rem .15rem 0; }
.dots .row.axis { border-top: 1px solid var(--rule); }
.dots .row small { display: block; }
.chart { padding: .75rem 1rem 0 2.75rem; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .5rem 1.5rem; }
.multiples h3 { margin: .75rem 0 0; }
article { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem; padding: 1rem 1.15rem 1.1rem;
  margin: 1rem 0; }
article h3 { margin: 0 0 .6rem; font-size: .8125rem; font-weight: 600; color: var(--muted); }
article .mark.deaf, article .deaf .mark, li .deaf .mark, table .deaf .mark { fill: var(--card); }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .5rem 1rem; }
figure { margin: 0; min-width: 0; }
figcaption { overflow-wrap: anywhere; }
audio { display: block; width: 100%; max-width: 26rem; height: 2.75rem; margin-top: .15rem; }
.question { font-size: 1.0625rem; font-weight: 550; margin: .8rem 0 .5rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1rem; margin: .5rem 0 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; max-width: 44rem; }
.truth { font-weight: 600; }
.verdict { font-size: .8125rem; font-weight: 650; white-space: nowrap; margin-right: .4rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
footer { margin-top: 3.5rem; padding-bottom: 3rem; }
footer ul { padding-left: 1.1rem; margin: .4rem 0 1.25rem; } footer li { margin: .3rem 0; overflow-wrap: anywhere; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, monospace; background: var(--grid); padding: .1em .35em;
  border-radius: .25rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; } main, footer { padding-left: 1rem; padding-right: 1rem; }
  .hint { display: inline; }
  .dots .row { grid-template-columns: 1fr; padding: .45rem .75rem .45rem .5rem; }
  .dots .row .label { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; }
  .dots .row.axis .label { display: none; }
  .accuracy .n { display: none; }
  table { font-size: .875rem; } td small { font-size: .75rem; } th, td { padding: .4rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
"""

MACROS = """\
{# an arm's mark around the origin #}
{% macro mark(style) %}
{% if style == "arm0" %}<circle r="5"/>
{% elif style == "arm1" %}<path d="M-4.6-4.6h9.2v9.2h-9.2z"/>
{% elif style == "arm2" %}<path d="M0-6.4 6.4 0 0 6.4-6.4 0z"/>
{% elif style == "arm3" %}<path d="M0-6 6 4.8H-6z"/>
{% elif style == "arm4" %}<path d="M0 6-6-4.8H6z"/>
{% else %}<circle r="4.4"/>
{% endif %}
{% endmacro %}

{% macro key(arm, line=false) %}
<span class="key"><svg width="{{ 34 if line else 16 }}" height="16" class="{{ arms[arm] }}" aria-hidden="true">
{% if line %}<line x1="1" x2="33" y1="8" y2="8" class="line"/>{% endif %}
<svg x="{{ 17 if line else 8 }}" y="8" class="mark">{{ mark(arms[arm]) }}</svg></svg>{{ arm }}</span>
{% endmacro %}

{% macro majority_mark() %}
<svg width="16" height="16" aria-hidden="true"><line x1="8" x2="8" y1="0" y2="16" class="majority"/></svg>
{% endmacro %}

{% macro percent(x) %}{{ "%.1f"|format(100 * x) }}{% endmacro %}
{% macro at(x) %}{{ "%.2f"|format(x) }}%{% endmacro %}
{% macro title(name) %}{{ names.get(name, name.replace("_", " ")) }}{% endmacro %}

{# one lane for each arm, the majority baseline across all of them #}
{% macro dot_plot(row) %}
{% set height = 12 + 14 * arms|length %}
<svg width="100%" height="{{ height }}" role="img" aria-label="{{ title(row.name) }}:
{%- for lane in row.lanes %} {{ lane.arm }} {{ "%.1f"|format(lane.at) }} %;{% endfor %}
{% if row.majority is not none %} {{ majority }} {{ "%.1f"|format(row.majority) }} %{% endif %}">
{% for x in (0, 25, 50, 75, 100) %}<line x1="{{ x }}%" x2="{{ x }}%" y1="0" y2="100%" class="grid"/>{% endfor %}
{% if row.majority is not none %}
<line x1="{{ at(row.majority) }}" x2="{{ at(row.majority) }}" y1="2" y2="{{ height - 2 }}" class="majority"/>
{% endif %}
{% for lane in row.lanes %}
{% set y = 13 + 14 * loop.index0 %}
<g class="{{ arms[lane.arm] }}">
<title>{{ lane.arm }}: {{ "%.1f %% (%.1f to %.1f)"|format(lane.at, lane.low, lane.high) }}</title>
<line x1="{{ at(lane.low) }}" x2="{{ at(lane.high) }}" y1="{{ y }}" y2="{{ y }}" class="whisker"/>
<svg x="{{ at(lane.at) }}" y="{{ y }}" class="mark">{{ mark(arms[lane.arm]) }}</svg></g>
{% endfor %}
</svg>
{% endmacro %}

{% macro chart(of, height, label) %}
<div class="chart"><svg width="100%" height="{{ height + 26 }}" role="img" aria-label="{{ label }}">
<svg height="{{ height }}" width="100%">
{% for y, text in of.y %}
<line x1="0" x2="100%" y1="{{ at(y) }}" y2="{{ at(y) }}" class="grid"/>
<text x="-8" y="{{ at(y) }}" dy="4" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for line in of.lines %}
<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="100%" class="{{ arms[line.arm] }}">
<polyline class="line" points="{% for x, y in line.points %}{{ "%.2f,%.2f "|format(x, y) }}{% endfor %}"/></svg>
{% set x, y = line.points[-1] %}
<svg x="{{ at(x) }}" y="{{ at(y) }}" class="mark {{ arms[line.arm] }}">
<title>{{ line.arm }}: {{ line.end }} at the end</title>{{ mark(arms[line.arm]) }}</svg>
{% endfor %}
</svg>
{% for x, text in of.x %}<text x="{{ at(x) }}" y="{{ height + 20 }}" text-anchor="middle">{{ text }}</text>{% endfor %}
</svg></div>
{% endmacro %}
"""

BODY = """\
<main>
<h1>What each encoder lets one audio language model answer</h1>
{% if comparison.note %}<p class="note">{{ comparison.note }}</p>{% endif %}
<p>The same model was trained once for each arm, with equal hyperparameters on the same
{{ "{:,}".format(comparison.rows.train) }} rows, and answered the same {{ "{:,}".format(comparison.rows.test) }} test rows.
Only the audio encoder differs{% if text_only %}; {{ text_only|join(", ") }} had no audio at all, and shows what the questions
give away{% endif %}. Seed {{ comparison.seed }}: the intervals below cover which test rows were drawn, not what another
training would have given.</p>
<ul class="cards">
{% for arm, of in comparison.arms.items() if of.micro is defined %}
<li class="{{ arms[arm] }}">{{ key(arm) }}<b>{{ percent(of.micro.accuracy) }} %</b>
<small>{{ percent(of.micro.ci95_low) }} &ndash; {{ percent(of.micro.ci95_high) }} % of {{ of.micro.n }} closed rows</small></li>
{% endfor %}
{% if comparison.majority.micro is defined %}
<li class="base"><span class="key">{{ majority_mark() }} {{ majority }}</span>
<b>{{ percent(comparison.majority.micro.accuracy) }} %</b>
<small>always training's commonest answer</small></li>
{% endif %}
</ul>

<h2>Accuracy</h2>
<p class="muted">Right answers in per cent, with Wilson's 95 % interval below. An answer that names no option, or two, is wrong.
<span class="hint">The table scrolls sideways.</span></p>
<div class="scroll" role="region" aria-label="Table of accuracy" tabindex="0"><table class="accuracy">
<thead><tr><th scope="col">group</th><th scope="col" class="n">rows</th>
{% for arm in arms %}<th scope="col">{{ key(arm) }}</th>{% endfor %}<th scope="col">{{ majority }}</th></tr></thead>
<tbody>
{% for row in rows %}
{% if loop.changed(row.section) %}
<tr><th colspan="{{ arms|length + 3 }}" scope="colgroup">{{ sections[row.section] }}</th></tr>
{% endif %}
<tr><th scope="row">{{ title(row.name) }}</th><td class="n">{{ row.n or "" }}</td>
{% for column, cell in row.cells.items() %}
<td{% if column == majority %} class="base"{% endif %}>
{% if not cell %}&ndash;{% elif "loss" in cell %}{{ "%.3f"|format(cell.loss) }}{% else %}{{ percent(cell.accuracy) }}
{% if "ci95_low" in cell %}<small>{{ percent(cell.ci95_low) }} &ndash; {{ percent(cell.ci95_high) }}</small>{% endif %}
{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>

<h2>The same as a picture</h2>
<p class="muted">Mark: accuracy; bar: its 95 % interval. Dashed line: the answer that training has most often for such
questions.
{% if text_only %}Hollow grey mark: the text alone. Whatever lies clear to the right of both came from listening.{% endif %}</p>
<p class="legend">{% for arm in arms %}{{ key(arm) }}{% endfor %}
<span class="key">{{ majority_mark() }} {{ majority }} baseline</span></p>
<div class="dots" id="accuracy">
{% for row in dots %}
{% if loop.changed(row.section) %}<h3>{{ sections[row.section] }}</h3>{% endif %}
<div class="row"><div class="label">{{ title(row.name) }} <small>{{ row.n }} rows</small></div>
{{ dot_plot(row) }}</div>
{% endfor %}
<div class="row axis"><div class="label"></div><svg width="100%" height="22" aria-hidden="true">
{% for x in (0, 25, 50, 75, 100) %}<text x="{{ x }}%" y="16" text-anchor="middle">{{ x }}{{ " %" if x }}</text>{% endfor %}
</svg></div>
</div>

<h2>Learning curves</h2>
<p class="muted">Cross-entropy on the answers' tokens by training step; lower is better.</p>
<p class="legend">{% for arm in arms %}{{ key(arm, true) }}{% endfor %}</p>
<h3>Training loss, a moving average over a 25th of the run</h3>
<div id="training">{{ chart(train_chart, 220, "training loss by step") }}</div>
{% if eval_charts %}
<h3>Validation loss by question type</h3>
<p class="muted">Each with an axis of its own.</p>
<div class="multiples" id="validation">
{% for name, of in eval_charts %}
<div><h3>{{ name }}</h3>{{ chart(of, 110, name ~ ": validation loss by step") }}</div>
{% endfor %}
</div>
{% endif %}

<h2>Listen: test clips and what each arm answered</h2>
<p class="muted">{{ examples|length }} rows, spread over question types and categories: always the first of the test file with
clips not shown yet, whatever the arms answered.</p>
{% for example in examples %}
<article>
<h3>{{ title(example.question_type) }} · {{ title(example.category) }}</h3>
<div class="players">
{% for clip in example.clips %}
<figure><figcaption>{{ "Audio %d: "|format(loop.index) if example.clips|length > 1 }}{{ clip.name }}</figcaption>
<audio controls preload="metadata" src="{{ clip.uri }}" aria-label="{{ clip.name }}"></audio></figure>
{% endfor %}
</div>
<p class="question">{{ example.question }}</p>
<dl><dt>truth</dt><dd class="truth">{{ example.truth }}</dd>
{% for arm, answer in example.answers.items() %}
<dt>{{ key(arm) }}</dt><dd>
{% if answer.correct is none %}
<span class="verdict muted">loss {{ "%.2f"|format(answer.loss_per_answer_token) }} per token</span>
{% elif answer.correct %}
<span class="verdict good">✓ right</span>
{% else %}
<span class="verdict bad">✗ wrong{{ ", names no option" if answer.parsed is none }}</span>
{% endif %}
{{ answer.text or "(no answer)" }}</dd>
{% endfor %}
</dl>
</article>
{% endfor %}
</main>
<footer>
<h2>Where each figure comes from</h2>
<p class="muted">All of it: <code>{{ comparison.command }}</code>. File names are relative to its output folder.</p>
<ul class="muted">
<li>Accuracy, its picture, losses of text types: <code>ARM/evaluation/metrics.json</code>, written by <code>run_eval.py</code>;
all arms together in <code>comparison.json</code>.</li>
<li>Majority baseline: computed from the training rows by <code>run_compare.py</code>, in <code>comparison.json</code>.</li>
<li>Learning curves: <code>ARM/trainer_state.json</code>, written by <code>run_train.py</code>.</li>
<li>Questions and answers: <code>ARM/evaluation/predictions.jsonl</code>, written by <code>run_eval.py</code>.</li>
<li>Every option that an arm was trained and evaluated with: <code>ARM/arm.json</code>. Seconds of each stage:
<code>timings.json</code>.</li>
</ul>
<div class="scroll" role="region" aria-label="Table of the arms" tabindex="0"><table class="words">
<thead><tr><th scope="col">arm</th><th scope="col">encoder</th><th scope="col">weights</th>
<th scope="col">trained parameters</th><th scope="col">tokens a clip</th></tr></thead>
<tbody>
{% for arm, of in comparison.arms.items() %}
<tr><th scope="row">{{ key(arm) }}</th><td>{{ of.encoder_type }}{{ ", audio taken away" if arm in text_only }}</td>
<td>{{ of.encoder_name_or_path|default("published", true) }}</td><td>{{ "{:,}".format(of.trained_parameters) }}</td>
<td>{{ of.tokens_per_clip }} for {{ "%g"|format(of.max_audio_seconds) }} s</td></tr>
{% endfor %}
</tbody></table></div>
</footer>
"""

PAGE = f"""\
{MACROS}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; media-src data:; img-src data:">
<link rel="icon" href="data:,">
<title>AudioLM: {{{{ arms|join(", ") }}}}</title>
<style>
{STYLE}</style>
</head>
<body>
{BODY}</body>
</html>
"""
