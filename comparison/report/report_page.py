"""The page of report.py, a jinja2 template: markup and pictures. It runs no script, and its policy allows none.

Rows are chosen by style alone: a box that is checked hides what has not its class (see `filters` in report_rows.py).
"""

from .report_macros import MACROS
from .report_style import STYLE

TOP = """\
<h1>What each encoder lets one audio language model answer</h1>
{% if comparison.conclusion is defined %}<p class="claim">{{ comparison.conclusion }}</p>
{% else %}<p class="claim">No question here has options, so nothing is claimed about accuracy.</p>{% endif %}
{% if comparison.note %}<p class="note">{{ comparison.note }}</p>{% endif %}
{% if comparison.left_out is defined %}
<p class="note">Left out, as a run of theirs failed: {{ comparison.left_out|join(", ") }}.</p>
{% endif %}
<p>The same model was trained {{ seeds|length if seeds|length > 1 }} {{ "times" if seeds|length > 1 else "once" }} for each
arm, with equal hyperparameters{% if comparison.rows.train is defined %} on the same {{ "{:,}".format(comparison.rows.train) }}
rows{% endif %}, and answered the same {{ "{:,}".format(comparison.rows.test) }} test rows.
{% if arms|length > 1 %}
Only the audio encoder differs{% if text_only %}; {{ text_only|join(", ") }} had no audio at all, and shows what the questions
give away{% endif %}.
{% endif %}
{{ "Seeds" if seeds|length > 1 else "Seed" }} {{ seeds|join(", ") }}{% if seeds|length > 1 %}: each figure is the mean over
them, unless it says otherwise{% endif %}.
{% if dots %}
The intervals cover which test clips were drawn, not what another training would have given. Closed questions are answered by
{{ protocols[comparison.protocol] }}.
{% endif %}</p>
{% if dots %}<ul class="cards">
{% for arm, of in comparison.arms.items() if of.macro is defined %}
<li class="{{ arms[arm] }}">{{ key(arm) }}<b>{{ of.macro.accuracy|percent }} %</b>
<small>{{ of.macro.ci95_low|percent }} &ndash; {{ of.macro.ci95_high|percent }} %, mean of types</small></li>
{% endfor %}
{% if comparison.majority.macro_accuracy is defined %}
<li class="base"><span class="key">{{ majority_mark() }} {{ majority }}</span>
<b>{{ comparison.majority.macro_accuracy|percent }} %</b>
<small>always training's commonest answer</small></li>
{% endif %}
</ul>{% endif %}
<nav aria-label="Contents">
{% if dots %}<a href="#accuracy">Accuracy</a><a href="#listening">Listening</a>{% endif %}
{% if panels %}<a href="#costs">Bits and tokens</a>{% endif %}
{% if comparison.budgets is defined %}<a href="#budgets">Budgets</a>{% endif %}
{% if pairs.primary.rows %}<a href="#pairs">Differences</a>{% endif %}
{% if comparison.probes is defined %}<a href="#probes">Probes</a>{% endif %}
{% if comparison.best_learning_rates is defined %}<a href="#rates">Learning rates</a>{% endif %}
{% if by_protocol|length > arms|length %}<a href="#protocols">Other protocols</a>{% endif %}
{% if calibration %}<a href="#calibration">Calibration</a>{% endif %}
{% if open.kinds %}<a href="#open">Open questions</a>{% endif %}
{% if dots %}<a href="#groups">Clips heard whole or cut</a>{% endif %}
{% if charts %}<a href="#curves">Learning curves</a>{% endif %}
<a href="#rows">Test rows to hear</a><a href="#sources">Sources</a>
</nav>
"""

FIGURES = """\
{% if dots %}
<h2 id="accuracy">Accuracy</h2>
<p class="muted">Right answers in per cent by {{ protocols[comparison.protocol] }}, the protocol that decides. Mark: accuracy;
bar: its 95&nbsp;% interval over clips. Beneath each arm its controls, small. Dashed line: the answer that training has most
often for such questions.{% if text_only %} Hollow grey mark: the text alone.{% endif %} What lies clear to the right of every
control came from listening; under other letters, who listens stays as good.</p>
{{ legend() }}
<p class="legend">{% for name in controls if name != majority %}
<span class="key"><svg width="16" height="16" aria-hidden="true"><svg x="8" y="8" class="control">{{ control_mark(name) }}</svg>
</svg>{{ title(name) }}</span>{% endfor %}
{% if comparison.majority %}<span class="key">{{ majority_mark() }} {{ majority }}</span>{% endif %}
{% if not controls %}No control was run.{% endif %}</p>
<div class="dots" id="dots">
{% for row in dots %}
{% if loop.changed(row.section) %}<h3>{{ sections[row.section] }}</h3>{% endif %}
<div class="row"><div class="label">{{ title(row.name) }}
<small>{{ "primary endpoint" if row.name == "mean of types" else "{:,} rows".format(row.n) }}</small></div>
{{ dot_plot(row) }}</div>
{% endfor %}
<div class="row axis"><div class="label"></div><svg width="100%" height="22" aria-hidden="true">
{% for x in (0, 25, 50, 75, 100) %}<text x="{{ x }}%" y="16" text-anchor="middle">{{ x }}{{ " %" if x }}</text>{% endfor %}
</svg></div>
</div>
<h3>The same as figures</h3>
<p class="muted"><span class="hint">The table scrolls sideways.</span></p>
{% call scroll("Table of accuracy", class="accuracy") %}
<thead><tr><th scope="col">group</th><th scope="col" class="n">rows</th>
{% for arm in arms %}<th scope="col">{{ key(arm) }}</th>{% endfor %}
{% if comparison.majority %}<th scope="col">{{ majority }}</th>{% endif %}</tr></thead>
<tbody>
{% for row in rows %}
{% if loop.changed(row.section) %}
<tr><th colspan="{{ arms|length + 3 }}" scope="colgroup">{{ sections[row.section] }}</th></tr>
{% endif %}
<tr><th scope="row">{{ title(row.name) }}</th><td class="n">{{ row.n or "" }}</td>
{% for column, of in row.cells.items() %}<td{% if column == majority %} class="base"{% endif %}>{{ cell(of) }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody>{% endcall %}

<h2 id="audio_gain">What comes from listening</h2>
{% if listening.rows %}
<p class="muted">Accuracy minus that of the arm's best control, in points, with its 95&nbsp;% interval over clips. An arm whose
interval reaches 0 is not shown to listen.</p>
<p class="legend">{% for lane in listening.rows[0].lanes %}{{ key(lane.arm) }}{% endfor %}</p>
<div class="dots">
{% for row in listening.rows %}
<div class="row"><div class="label">{{ title(row.name) }}</div>{{ difference_plot(row, title(row.name)) }}</div>
{% endfor %}
{{ difference_axis(listening) }}</div>
{% call scroll("Table of accuracy above the best control") %}
<thead><tr><th scope="col">arm</th><th scope="col">difference</th><th scope="col">accuracy</th>
<th scope="col" class="words">best control</th><th scope="col">its accuracy</th></tr></thead><tbody>
{% for row in listening.rows %}
<tr><th colspan="5" scope="colgroup">{{ title(row.name) }}</th></tr>
{% for lane in row.lanes %}
<tr><th scope="row">{{ key(lane.arm) }}</th>
<td>{{ lane.difference|points }}<small>{{ lane.ci95_low|points }} to {{ lane.ci95_high|points }}</small></td>
<td>{{ lane.accuracy|percent }}</td>
<td class="words">{{ lane.best_control if lane.best_control in arms else title(lane.best_control) }}</td>
<td>{{ lane.control_accuracy|percent }}</td></tr>
{% endfor %}
{% endfor %}</tbody>{% endcall %}
{% else %}
<p>No control was run on these rows (<code>run_eval.py --controls all</code>), so that nothing is known about what comes from
listening.</p>
{% endif %}
{% if controls %}
<details><summary>Every control, and how often the same option is picked under other letters</summary>
<p class="muted">Right answers in per cent. Of the rows that have options under letters, “same” is the share where an arm picks
the same text when all stand under other letters. <span class="hint">The table scrolls sideways.</span></p>
{% call scroll("Table of controls") %}
<thead><tr><th scope="col">arm</th><th scope="col">heard</th>
{% for name in controls %}<th scope="col">{{ title(name) }}</th>{% endfor %}<th scope="col">same</th></tr></thead><tbody>
{% for row in control_rows %}
{% if loop.changed(row.name) %}
<tr><th colspan="{{ controls|length + 3 }}" scope="colgroup">{{ title(row.name) }}</th></tr>
{% endif %}
<tr><th scope="row">{{ key(row.arm) }}</th><td>{{ row.accuracy|percent }}</td>
{% for of in row.controls %}
<td>{{ share(of.accuracy if of else none) }}{% if of and of.n != row.n %}<small>of {{ of.n }} rows</small>{% endif %}</td>
{% endfor %}
<td>{{ share(row.same) }}</td></tr>
{% endfor %}</tbody>{% endcall %}</details>
{% endif %}
{% endif %}

{% if panels %}
<h2 id="costs">What it takes</h2>
<p class="muted">{{ caption }}</p>
<div class="panels">{% for of in panels %}{{ panel(of) }}{% endfor %}</div>
{% endif %}

{% if comparison.budgets is defined %}
<h2 id="budgets">By number of steps</h2>
<p class="muted">Macro accuracy in per cent with its 95&nbsp;% interval over clips, of trainings of so many steps; beneath it
the points above the best control.</p>
{% call scroll("Table of budgets") %}
<thead><tr><th scope="col">steps</th>{% for arm in arms %}<th scope="col">{{ key(arm) }}</th>{% endfor %}</tr></thead><tbody>
{% for steps, found in comparison.budgets.items() %}
<tr><th scope="row">{{ "{:,}".format(steps|int) }}</th>
{% for arm in arms %}{% set of = found.get(arm) %}<td>{{ cell(of.macro if of else none) }}
{% if of and of.audio_gain %}<small>{{ of.audio_gain.difference|points }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody>{% endcall %}
{% endif %}

{% macro pair_name(of) %}{{ of.b }} &minus; {{ of.a }}{% endmacro %}
{% macro forest_rows(of_pairs) %}
{% for row in of_pairs.rows %}
{% set of = row.lanes[0] %}
{% if loop.changed(row.name) %}
<h3>{{ title(row.name) }}{{ ", the primary endpoint" if row.name == "macro" }}</h3>
{% endif %}
<div class="row"><div class="label">{{ pair_name(of) }} <small>{{ of.difference|points }} ({{ of.ci95_low|points }} to
{{ of.ci95_high|points }}){% if of.p_holm is defined %}, p {{ p(of.p_holm) }} after Holm{% endif %}</small></div>
{{ difference_plot({"lanes": [dict(of, arm="")]}, pair_name(of)) }}</div>
{% endfor %}
{{ difference_axis(of_pairs) }}
{% endmacro %}
{% if pairs.primary.rows %}
<h2 id="pairs">Differences between arms</h2>
<p class="muted">In points of accuracy, the second named arm taken from the first, with the 95&nbsp;% interval over clips
({{ "{:,}".format(comparison.statistics.resamples) }} resamples). P: permutation of whole clips, two-sided. The mean of types is
one family of Holm's correction, the question types are another; categories are explored without a test.</p>
<div class="dots pairs">{{ forest_rows(pairs.primary) }}</div>
<details{{ " open" if pairs.primary.rows|length <= 3 }}><summary>By question type</summary>
<div class="dots pairs">{{ forest_rows(pairs.by_type) }}</div></details>
<details><summary>By category, without a test</summary>
<div class="dots pairs">{{ forest_rows(pairs.by_category) }}</div></details>
<p class="muted">Spread between seeds stands apart from the interval. Detectable: the smallest true difference that this many
clips find four times in five. McNemar's exact test takes rows of one clip for independent, and is of
seed {{ seeds[0] }}{{ ", the first" if seeds|length > 1 }}.
<span class="hint">The table scrolls sideways.</span></p>
{% call scroll("Table of differences") %}
<thead><tr><th scope="col">pair</th><th scope="col">rows</th><th scope="col">difference</th>
<th scope="col">p<small>after Holm</small></th><th scope="col">by seed</th><th scope="col">detectable</th>
<th scope="col">only one right</th><th scope="col">McNemar's p<small>after Holm</small></th></tr></thead><tbody>
{% for row in pairs.primary.rows + pairs.by_type.rows %}
{% set of = row.lanes[0] %}
{% if loop.changed(row.name) %}<tr><th colspan="8" scope="colgroup">{{ title(row.name) }}</th></tr>{% endif %}
<tr><th scope="row">{{ pair_name(of) }}</th><td class="n">{{ of.get("n", comparison.statistics.rows) }}</td>
<td>{{ of.difference|points }}<small>{{ of.ci95_low|points }} to {{ of.ci95_high|points }}</small></td>
<td>{{ p(of.p) }}<small>{{ p(of.p_holm) }}</small></td>
{% if row.name == "macro" %}
<td>{% for value in of.by_seed %}<small>{{ value|points }}</small>{% endfor %}</td>
<td>{{ of.minimum_detectable_difference|percent }}</td><td>&ndash;</td><td>&ndash;</td>
{% else %}
<td>&ndash;</td><td>&ndash;</td><td><small>{{ of.b }} {{ of.mcnemar.only_second }}</small>
<small>{{ of.a }} {{ of.mcnemar.only_first }}</small></td>
<td>{{ p(of.mcnemar.p) }}<small>{{ p(of.mcnemar.p_holm) }}</small></td>
{% endif %}</tr>
{% endfor %}</tbody>{% endcall %}
{% endif %}

{% if comparison.best_learning_rates is defined %}
{% set best = comparison.best_learning_rates %}
<h2 id="rates">Each arm at its best learning rate</h2>
<p class="muted">Beside the comparison above, never in its place: each arm at the rate of its lowest loss per answer token on
the validation split at the last step, mean over question types and seeds.</p>
{% if best.conclusion %}<p>{{ best.conclusion }}</p>{% endif %}
{% call scroll("Table of learning rates") %}
<thead><tr><th scope="col">arm</th><th scope="col">best rate</th><th scope="col">mean of types</th>
<th scope="col" class="words">validation loss by rate</th></tr></thead><tbody>
{% for arm, of in best.rates.items() %}
<tr><th scope="row">{{ key(arm) if arm in arms else arm }}</th><td>{{ "%g"|format(of.best) }}</td>
<td>{{ cell(best.macro.get(arm)) }}</td><td class="words">{% for rate, loss in of.loss.items() %}
<small>{{ rate }}: {{ number(loss) }}</small>{% endfor %}</td></tr>
{% endfor %}</tbody>{% endcall %}
{% if best.statistics and best.statistics.primary %}
{% call scroll("Table of differences at the best learning rates") %}
<thead><tr><th scope="col">pair</th><th scope="col">difference</th><th scope="col">p</th><th scope="col">p, Holm</th>
<th scope="col">by seed</th></tr></thead><tbody>
{% for of in best.statistics.primary %}
<tr><th scope="row">{{ pair_name(of) }}</th>
<td>{{ of.difference|points }}<small>{{ of.ci95_low|points }} to {{ of.ci95_high|points }}</small></td>
<td>{{ p(of.p) }}</td><td>{{ p(of.p_holm) }}</td>
<td>{% for value in of.by_seed %}<small>{{ value|points }}</small>{% endfor %}</td></tr>
{% endfor %}</tbody>{% endcall %}
{% endif %}
{% endif %}

{% if comparison.probes is defined %}
<h2 id="probes">What the encoders hold at all</h2>
<p class="muted">Linear probes on the frozen features, accuracy in per cent with its 95 % interval over test clips; no language
model is asked.</p>
{% call scroll("Table of probes") %}
{% set encoders = (comparison.probes.values()|first).encoders %}
<thead><tr><th scope="col">labels, pooling</th><th scope="col">clips</th>
{% for arm in encoders %}<th scope="col">{{ key(arm) if arm in arms else arm }}</th>{% endfor %}
<th scope="col">majority</th></tr></thead><tbody>
{% for kind, of in comparison.probes.items() %}{% for pooling, found in of.results.items() %}
<tr><th scope="row">{{ kind }}, {{ pooling }}</th><td>{{ of.folds.values()|sum(attribute="test") }}</td>
{% for arm in encoders %}<td>{{ cell(found[arm]) }}</td>{% endfor %}<td>{{ of.majority.accuracy|percent }}</td></tr>
{% endfor %}{% endfor %}</tbody>{% endcall %}
{% endif %}

{% if by_protocol|length > arms|length %}
<h2 id="protocols">The same rows by other protocols</h2>
<p class="muted">Accuracy in per cent. Only {{ protocols[comparison.protocol] }} decides, and stands everywhere else on this
page; the others are here so that nobody takes one for the other. An answer that names no option, or two, is unparsed and
wrong.</p>
{% call scroll("Table of protocols") %}
<thead><tr><th scope="col">arm</th>{% for kind in by_protocol[0].types %}<th scope="col">{{ title(kind) }}</th>{% endfor %}
<th scope="col">mean of types</th><th scope="col">unparsed rows</th></tr></thead><tbody>
{% for row in by_protocol %}
{% if loop.changed(row.protocol) %}
<tr><th colspan="{{ row.types|length + 3 }}" scope="colgroup">by {{ protocols.get(row.protocol, row.protocol) }}
{{- ": it decides" if row.protocol == comparison.protocol }}</th></tr>
{% endif %}
<tr><th scope="row">{{ key(row.arm) }}</th>{% for value in row.types.values() %}<td>{{ value|percent }}</td>{% endfor %}
<td>{{ row.macro|percent }}</td><td>{{ "%g"|format(row.unparsed) }}</td></tr>
{% endfor %}</tbody>{% endcall %}
{% endif %}

{% if calibration %}
<h2 id="calibration">Are the probabilities to be believed?</h2>
<p class="muted">Of each arm's answers to closed questions: their probability among the options (from left to right) and how
often they are right (upwards), both in per cent, in bins of ten. On the line they agree; a point below it is too sure. A larger
point is of more answers. ECE: the mean distance from the line, in points.</p>
<div class="multiples">
{% for arm, of in calibration.items() %}
<div><h3>{{ key(arm) }}</h3><p class="muted">ECE {{ of.ece|percent }}, {{ "{:,}".format(of.n) }} answers</p>
{{ reliability_plot(arm, of) }}</div>
{% endfor %}
</div>
{% endif %}

{% if open.kinds %}
<h2 id="open">Open questions</h2>
<p class="muted">Loss per token of the right answer, lower is better, as it is and under controls; and greedy text beside the
right answer, higher is better. Longer and plainer texts score otherwise: none of these numbers decides.
<span class="hint">The table scrolls sideways.</span></p>
{% call scroll("Table of open questions") %}
<thead><tr><th scope="col">arm</th><th scope="col">loss</th>
{% for name in open.controls %}<th scope="col">{{ title(name) }}</th>{% endfor %}
{% for name in open.metrics %}<th scope="col">{{ title(name) }}</th>{% endfor %}</tr></thead><tbody>
{% for kind in open.kinds %}
{% for arm in arms if kind in comparison.arms[arm].text %}
{% set of = comparison.arms[arm].text[kind] %}
{% if loop.first %}
<tr><th colspan="{{ 2 + open.controls|length + open.metrics|length }}" scope="colgroup">
{{ title(kind) }}, {{ "{:,}".format(of.n) }} rows</th></tr>
{% endif %}
<tr><th scope="row">{{ key(arm) }}</th><td>{{ number(of.loss_per_answer_token) }}</td>
{% for name in open.controls %}<td class="base">{{ number(of.control_loss.get(name)) }}</td>{% endfor %}
{% for name in open.metrics %}<td>{{ number(of.get("generated", {}).get(name)) }}</td>{% endfor %}</tr>
{% endfor %}
{% endfor %}</tbody>{% endcall %}
{% endif %}

{% if dots %}
<h2 id="groups">Clips heard whole and cut, and other groups</h2>
<p class="muted">Accuracy in per cent with its 95&nbsp;% interval over clips. Of a clip that is longer than
{{ "%g"|format(seconds) }} s, the first {{ "%g"|format(seconds) }} s were used: it is cut.
{% if not comparison.arms.values()|selectattr("truncation.truncated", "defined")|list %}None was here.{% endif %}</p>
{% call scroll("Table of other groups") %}
<thead><tr><th scope="col">group</th><th scope="col" class="n">rows</th>
{% for arm in arms %}<th scope="col">{{ key(arm) }}</th>{% endfor %}</tr></thead><tbody>
{% set of_first = comparison.arms.values()|first %}
{% for grouping, label in groupings.items() %}
<tr><th colspan="{{ arms|length + 2 }}" scope="colgroup">{{ label }}</th></tr>
{% for name, one in of_first[grouping].items() %}
<tr><th scope="row">{{ name }}</th><td class="n">{{ one.n }}</td>
{% for of in comparison.arms.values() %}<td>{{ cell(of[grouping].get(name)) }}</td>{% endfor %}</tr>
{% endfor %}
{% endfor %}</tbody>{% endcall %}
{% endif %}

{% if charts %}
<h2 id="curves">Learning curves</h2>
<p class="muted">Cross-entropy on the answers' tokens by training step; lower is better. Of
seed {{ seeds[0] }}{{ ", the first, alone" if seeds|length > 1 }}.</p>
{{ legend(true) }}
{% set name, of = charts[0] %}
<h3>Training loss, a moving average over a 25th of the run</h3>
<div id="training">{{ chart(of, 220, "training loss by step") }}</div>
{% if charts|length > 1 %}
<h3>Validation loss by question type</h3>
<p class="muted">Each with an axis of its own.</p>
<div class="multiples" id="validation">
{% for name, of in charts[1:] %}
<div><h3>{{ name }}</h3>{{ chart(of, 110, name ~ ": validation loss by step") }}</div>
{% endfor %}
</div>
{% endif %}
{% endif %}
"""

ROWS = """\
<h2 id="rows">Test rows to hear and to look through</h2>
<p class="muted">{{ asked|length }} of {{ "{:,}".format(of_all) }} rows, spread over question types and categories: always the
same ones, the first of the test file with clips not shown yet, whatever the arms answered. {% if has_audio %}Audio is the
{{ "%g"|format(seconds) }} s that were used, made small for this page.{% else %}No folder of audio was given
(<code>--audio_dir</code>), so that there is nothing to hear and no spectrogram.{% endif %}
{{- " " }}{% if seeds|length > 1 %}Answers are those of seed {{ seeds[0] }}, the first; beside them stands in how many seeds
they were right.{% endif %}</p>
<div class="browser">
<form class="filters" autocomplete="off" aria-label="Choose rows">
{% for group in filters %}
<fieldset{% if group.arm is none %} class="whole"{% endif %}>
<legend>{% if group.arm is none %}{{ group.title }}{% else %}{{ key(group.arm) }}{% endif %}</legend>
{% for box in group.boxes %}
<label class="chip"><input type="checkbox" id="{{ box.id }}" class="{{ group.key }}">{{ title(box.label) }}
<span class="muted">{{ box.n }}</span></label>
{% endfor %}</fieldset>
{% endfor %}
<button type="reset">Show all rows</button>
</form>
{% for row in asked %}
<details class="asked {{ row.classes|join(" ") }}" id="row-{{ row.number }}"{{ " open" if loop.first }}>
<summary><small>{{ title(row.question_type) }} · {{ row.category }} · row {{ row.number }}</small>
<span class="question">{{ row.question }}</span>
<small class="short">truth: {{ row.truth }}</small>
<span class="answers">{% for arm, answer in row.answers.items() %}<span>{{ key(arm) }} {{ verdict(answer) }}</span>{% endfor %}
</span></summary>
<div class="inside">
<div class="columns"><div class="players">
{% for clip in row.clips %}
{{ clip_figure(clip, "Audio %d: "|format(loop.index) if row.clips|length > 1 else "") }}
{% endfor %}
</div>
<dl><dt>truth</dt><dd class="truth">{{ row.truth }}</dd>
{% for arm, answer in row.answers.items() %}
<dt>{{ key(arm) }}</dt><dd>
{% if answer.correct is not none %}{{ answer.said or "no option" }} {{ verdict(answer) }}
{% if answer.of > 1 %}<small>right in {{ answer.right }} of {{ answer.of }} seeds</small>{% endif %}
{% if answer.text is not none %}<br><small>in greedy text: {{ answer.text or "(nothing)" }}</small>{% endif %}
{% else %}{{ "(no text was asked for)" if answer.text is none else answer.text or "(nothing)" }} {{ verdict(answer) }}
{% endif %}</dd>
{% endfor %}
</dl></div>
{% if row.options %}
<h4>Probability of each option</h4>
<div class="options">
{% for option in row.options %}
<div><p>{{ option.text }}{% if option.right %} <span class="verdict good">✓ truth</span>{% endif %}</p>
{% for arm, share in option.given.items() %}
<div class="bar {{ arms[arm] }}{{ " picked" if arm in option.picked }}">
<svg width="16" height="16" role="img" aria-label="{{ arm }}"><svg x="8" y="8" class="mark">{{ mark(arms[arm]) }}</svg></svg>
<svg width="100%" height="9" aria-hidden="true"><rect width="100%" height="9" rx="2" class="track"/>
<rect width="{{ at(100 * share) }}" height="9" rx="2" class="fill"/></svg>
<span>{{ share|percent }} %{{ " picked" if arm in option.picked }}</span></div>
{% endfor %}</div>
{% endfor %}
</div>
{% endif %}
<h4>{{ "What else was answered" if row.options or row.conditions[0].cells.values()|selectattr("parsed", "defined")|list
 else "Loss per token of the right answer" }}</h4>
{% call scroll("Answers under controls, row %d"|format(row.number)) %}
<thead><tr><td></td>{% for arm in arms %}<th scope="col">{{ key(arm) }}</th>{% endfor %}</tr></thead><tbody>
{% for condition in row.conditions %}
<tr><th scope="row">{{ title(condition.name) if condition.kind == "control" else
 "as it is" if "loss" in (condition.cells.values()|first or {}) else protocols.get(condition.name, condition.name) }}</th>
{% for of in condition.cells.values() %}
<td>{% if not of %}&ndash;{% elif of.loss is defined %}{{ "%.2f"|format(of.loss) }}
{%- else %}{{ of.parsed or "none" }} <span class="{{ "good" if of.correct else "bad" }}">{{ "✓" if of.correct else "✗" }}</span>
{%- endif %}</td>
{% endfor %}</tr>
{% endfor %}</tbody>{% endcall %}
</div></details>
{% endfor %}
{# the counter is known behind the rows; the style sheet puts it before them #}
<p class="count"> of {{ asked|length }} rows shown</p>
</div>
"""

FOOTER = """\
<h2 id="sources">Where each figure comes from</h2>
<p class="muted">All of it: <code>{{ comparison.command }}</code>, which writes <code>comparison.json</code> beside this page.
File names are relative to its folder. Of each arm and seed:</p>
{% call scroll("Table of the arms") %}
<thead><tr><th scope="col">arm</th><th scope="col" class="words">encoder</th><th scope="col" class="words">weights</th>
<th scope="col">trained parameters</th><th scope="col">tokens a clip</th><th scope="col" class="words">evaluations</th></tr>
</thead><tbody>
{% for arm, of in comparison.arms.items() %}
<tr><th scope="row">{{ key(arm) }}</th><td class="words">{{ of.encoder_type }}{{ ", audio taken away" if of.no_audio }}</td>
<td class="words">{{ of.get("encoder_name_or_path") or "as its config says" }}</td>
<td>{% if of.trained_parameters is defined %}{{ "{:,}".format(of.trained_parameters) }}{% else %}&ndash;{% endif %}</td>
<td>{% if of.tokens_per_clip is defined %}{{ of.tokens_per_clip }} for {{ "%g"|format(seconds) }} s{% else %}&ndash;{% endif %}
</td><td class="words">{% for seed, folder in folders[arm] %}<small>seed {{ seed }}: {{ folder }}</small>{% endfor %}</td></tr>
{% endfor %}
</tbody>{% endcall %}
{% set options = ("" if comparison.protocol == "likelihood" else " --protocol " ~ comparison.protocol)
 ~ ("" if seconds == 10 else " --max_audio_seconds %g"|format(seconds)) %}
<ul class="muted">
<li>The claim, accuracy and its intervals, differences, calibration, groups: <code>comparison.json</code>, from the rows of
<code>predictions.jsonl</code> in the folders above. <code>run_compare.py</code> computes them again without a model.</li>
<li>Controls, listening, other protocols, open questions, of one seed: <code>metrics.json</code> beside it, written by
<code>run_eval.py</code>, and again by <code>python -m audiolm.evaluation.tables
{{ (folders.values()|first)[0][1] }}/predictions.jsonl{{ options }}</code>.</li>
<li>Learning curves and learning rates: <code>trainer_state.json</code> in the folder of each model, written by
<code>run_train.py</code>.</li>
<li>Questions, answers, probabilities: <code>predictions.jsonl</code>, its row as numbered here. Audio and spectrograms: made
from the clips that it names.</li>
<li>Which claims may be made, and by which test, is fixed in <code>docs/protocol.md</code>.</li>
</ul>
"""

CHOOSING = """\
{% for group in filters %}
.browser:has(.{{ group.key }}:checked) .{{ group.key }}-none { display: none; }
{% for box in group.boxes %}
.browser:has(.{{ group.key }}:checked):not(:has(#{{ box.id }}:checked)) .asked.{{ box.id }} { display: none; }
{% endfor %}
{% endfor %}
"""

PAGE = f"""\
{MACROS}
{{% set seeds = comparison.seeds %}}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; media-src data:;
 img-src data:; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>AudioLM: {{{{ arms|join(", ") }}}}</title>
<style>
{STYLE}{CHOOSING}</style>
</head>
<body>
<main>
{TOP}{FIGURES}{ROWS}</main>
<footer>
{FOOTER}</footer>
</body>
</html>
"""
