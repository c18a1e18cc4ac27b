"""Jinja2 macros of report_page.py: marks, pictures of the figures of report_figures.py, clips and tables; and of figure.py."""

PANEL = """\
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

{# of figure.py, whose places are px #}
{% macro px(x) %}{{ "%.1f"|format(x) }}{% endmacro %}
{% macro panel(of) %}
<svg width="{{ of.width }}" height="{{ of.height }}" viewBox="0 0 {{ of.width }} {{ of.height }}" class="panel" role="img"
 aria-label="Points above the best control by {{ of.title }}:{% for p in of.points %} {{ p.says }};{% endfor %}">
{% for y, text in of.y %}
<line x1="{{ of.area.left }}" x2="{{ of.area.right }}" y1="{{ px(y) }}" y2="{{ px(y) }}" class="grid"/>
<text x="{{ of.area.left - 8 }}" y="{{ px(y) }}" dy="4" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in of.x %}
<line x1="{{ px(x) }}" x2="{{ px(x) }}" y1="{{ of.area.top }}" y2="{{ of.area.bottom }}" class="grid"/>
<text x="{{ px(x) }}" y="{{ of.area.bottom + 18 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<line x1="{{ of.area.left }}" x2="{{ of.area.right }}" y1="{{ px(of.zero) }}" y2="{{ px(of.zero) }}" class="zero"/>
<text x="{{ px((of.area.left + of.area.right) / 2) }}" y="{{ of.area.bottom + 38 }}" text-anchor="middle">{{ of.title }}</text>
{% for p in of.points %}
<g class="{{ p.style }}"><title>{{ p.says }}</title>
<line x1="{{ px(p.x) }}" x2="{{ px(p.x) }}" y1="{{ px(p.low) }}" y2="{{ px(p.high) }}" class="whisker"/>
{% if p.lead %}
<line x1="{{ px(p.x) }}" y1="{{ px(p.y) }}" x2="{{ px(p.lead[0]) }}" y2="{{ px(p.lead[1]) }}" class="lead"/>
{% endif %}
<svg x="{{ px(p.x) }}" y="{{ px(p.y) }}" class="mark">{{ mark(p.style) }}</svg></g>
{% endfor %}
{% for p in of.points %}<text x="{{ px(p.label[0]) }}" y="{{ px(p.label[1]) }}" class="name">{{ p.arm }}</text>{% endfor %}
</svg>
{% endmacro %}
"""
MACROS = (
    PANEL
    + """\
{# a control's mark: small, hollow, in the colour of text #}
{% macro control_mark(name) %}
{% if name == "no_audio" %}<path d="M-3.2-3.2 3.2 3.2M3.2-3.2-3.2 3.2"/>
{% elif name == "noise" %}<path d="M0-3.8 3.8 3H-3.8z"/>
{% elif name == "mismatched_audio" %}<path d="M0-4V4M-4 0H4"/>
{% elif name == "option_relabel" %}<path d="M-3-3h6v6h-6z"/>
{% else %}<path d="M0-4.4 4.4 0 0 4.4-4.4 0z"/>
{% endif %}
{% endmacro %}

{% macro key(arm, line=false) %}
<span class="key"><svg width="{{ 34 if line else 16 }}" height="16" class="{{ arms[arm] }}" aria-hidden="true">
{% if line %}<line x1="1" x2="33" y1="8" y2="8" class="line"/>{% endif %}
<svg x="{{ 17 if line else 8 }}" y="8" class="mark">{{ mark(arms[arm]) }}</svg></svg>{{ arm }}</span>
{% endmacro %}

{% macro legend(line=false) %}
<p class="legend">{% for arm in arms %}{{ key(arm, line) }}{% endfor %}</p>
{% endmacro %}

{% macro majority_mark() %}
<svg width="16" height="16" aria-hidden="true"><line x1="8" x2="8" y1="0" y2="16" class="majority"/></svg>
{% endmacro %}

{% macro at(x) %}{{ "%.2f"|format(x) }}%{% endmacro %}
{% macro title(name) %}{{ names.get(name, name.replace("_", " ")) }}{% endmacro %}
{% macro number(x) %}{{ "&ndash;"|safe if x is none or x is undefined else "%.3f"|format(x) }}{% endmacro %}
{% macro share(x) %}{{ "&ndash;"|safe if x is none else x|percent }}{% endmacro %}
{% macro p(x) %}{{ "%.4f"|format(x) if x >= 0.0001 else "<0.0001" }}{% endmacro %}
{% macro cell(of) %}
{% if not of %}&ndash;{% else %}{{ of.accuracy|percent }}
{% if "ci95_low" in of %}<small>{{ of.ci95_low|percent }} &ndash; {{ of.ci95_high|percent }}</small>{% endif %}{% endif %}
{% endmacro %}
{% macro scroll(label) %}
<div class="scroll" role="region" aria-label="{{ label }}" tabindex="0"><table{{ kwargs|xmlattr }}>{{ caller() }}</table></div>
{% endmacro %}

{# one lane for each arm with its controls beneath, the majority baseline across all of them #}
{% macro dot_plot(row) %}
<svg width="100%" height="{{ row.height }}" role="img" aria-label="{{ title(row.name) }}:
{%- for lane in row.lanes %} {{ lane.arm }} {{ "%.1f"|format(lane.at) }} %
{%- for name, x in lane.controls %}, {{ title(name) }} {{ "%.1f"|format(x) }} %{% endfor %};{% endfor %}
{% if row.majority is not none %} {{ majority }} {{ "%.1f"|format(row.majority) }} %{% endif %}">
{% for x in (0, 25, 50, 75, 100) %}<line x1="{{ x }}%" x2="{{ x }}%" y1="0" y2="100%" class="grid"/>{% endfor %}
{% if row.majority is not none %}
<line x1="{{ at(row.majority) }}" x2="{{ at(row.majority) }}" y1="2" y2="{{ row.height - 2 }}" class="majority"/>
{% endif %}
{% for lane in row.lanes %}
<g class="{{ arms[lane.arm] }}">
<title>{{ lane.arm }}: {{ "%.1f %% (%.1f to %.1f)"|format(lane.at, lane.low, lane.high) }}</title>
<line x1="{{ at(lane.low) }}" x2="{{ at(lane.high) }}" y1="{{ lane.y }}" y2="{{ lane.y }}" class="whisker"/>
<svg x="{{ at(lane.at) }}" y="{{ lane.y }}" class="mark">{{ mark(arms[lane.arm]) }}</svg></g>
{% for name, x in lane.controls %}
<svg x="{{ at(x) }}" y="{{ lane.y + 11 }}" class="control"><title>{{ lane.arm }}, {{ title(name) }}: {{ "%.1f"|format(x) }} %
</title>{{ control_mark(name) }}</svg>
{% endfor %}
{% endfor %}
</svg>
{% endmacro %}

{# differences around 0; `style` of a lane without an arm #}
{% macro difference_plot(row, label) %}
{% set height = 10 + 14 * row.lanes|length %}
<svg width="100%" height="{{ height }}" role="img" aria-label="{{ label }}:
{%- for lane in row.lanes %} {{ lane.arm or "" }} {{ lane.difference|points }} ({{ lane.ci95_low|points }} to
{{- " " }}{{ lane.ci95_high|points }});{% endfor %}">
{% for x in (0, 25, 50, 75, 100) %}
<line x1="{{ x }}%" x2="{{ x }}%" y1="0" y2="100%" class="{{ "zero" if x == 50 else "grid" }}"/>
{% endfor %}
{% for lane in row.lanes %}
{% set y = 12 + 14 * loop.index0 %}
<g class="{{ arms[lane.arm] if lane.arm else "pair" }}"><title>{{ lane.arm or label }}: {{ lane.difference|points }}
({{ lane.ci95_low|points }} to {{ lane.ci95_high|points }})</title>
<line x1="{{ at(lane.low) }}" x2="{{ at(lane.high) }}" y1="{{ y }}" y2="{{ y }}" class="whisker"/>
<svg x="{{ at(lane.at) }}" y="{{ y }}" class="mark">{{ mark(arms[lane.arm] if lane.arm else "pair") }}</svg></g>
{% endfor %}
</svg>
{% endmacro %}

{% macro difference_axis(of) %}
<div class="row axis"><div class="label"></div><svg width="100%" height="22" aria-hidden="true">
{% for x, text in of.x %}<text x="{{ x }}%" y="16" text-anchor="middle">{{ text }}</text>{% endfor %}</svg></div>
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

{% macro reliability_plot(arm, of) %}
<div class="chart"><svg width="100%" height="226" role="img" class="{{ arms[arm] }}" aria-label="{{ arm }}:
{%- for bin in of.points %} {{ bin.n }} answers of probability {{ bin.confidence|percent }} %, {{ bin.accuracy|percent }} %
{{- " " }}right;{% endfor %}"><svg height="200" width="100%">
{% for y in (0, 25, 50, 75, 100) %}
<line x1="0" x2="100%" y1="{{ y }}%" y2="{{ y }}%" class="grid"/>
<text x="-8" y="{{ y }}%" dy="4" text-anchor="end">{{ 100 - y }}</text>
{% endfor %}
<line x1="0" y1="100%" x2="100%" y2="0" class="zero"/>
{% for bin in of.points %}
<line x1="{{ at(bin.x) }}" x2="{{ at(bin.x) }}" y1="{{ at(bin.fair) }}" y2="{{ at(bin.y) }}" class="gap"/>
<circle cx="{{ at(bin.x) }}" cy="{{ at(bin.y) }}" r="{{ "%.1f"|format(bin.radius) }}" class="bins">
<title>{{ bin.n }} answers of probability {{ bin.confidence|percent }} %: {{ bin.accuracy|percent }} % right</title></circle>
{% endfor %}</svg>
{% for x in (0, 25, 50, 75, 100) %}<text x="{{ x }}%" y="220" text-anchor="middle">{{ x }}</text>{% endfor %}
</svg></div>
{% endmacro %}

{% macro clip_figure(clip, label) %}
<figure><figcaption>{{ label }}{{ clip.name }} ·
{% if clip.whole > clip.used %}the first {{ "%.1f s of %.1f s"|format(clip.used, clip.whole) }} were used
{%- else %}{{ "%.1f s"|format(clip.whole) }}{% endif %}</figcaption>
{% if clip.picture %}
{% set of = clip.picture %}
<audio controls preload="metadata" src="{{ of.audio }}" aria-label="{{ clip.name }}"></audio>
<div class="spectrum"><svg width="100%" height="134" role="img" aria-label="Spectrogram of {{ clip.name }}:
 {{ "%.1f"|format(of.used) }} s from left to right, low to high frequency from bottom to top">
<svg height="112" width="100%"><image href="{{ of.spectrogram }}" width="100%" height="112" preserveAspectRatio="none"/>
{% for y, text in of.hertz %}<text x="-6" y="{{ at(y) }}" dy="4" text-anchor="end">{{ text }}</text>{% endfor %}</svg>
<text x="-6" y="128" text-anchor="end">kHz</text>
{% for x, text in of.times %}
<text x="{{ at(x) }}" y="128" text-anchor="{{ "start" if loop.first else "middle" }}">{{ text }}{{ " s" if loop.last }}</text>
{% endfor %}</svg></div>
{% elif clip.why %}<p class="muted">Not to be heard here: {{ clip.why }}</p>
{% endif %}
</figure>
{% endmacro %}

{% macro verdict(answer) %}
{% if answer.correct is none %}<span class="verdict muted">loss {{ "%.2f"|format(answer.loss) }} per token</span>
{% elif answer.correct %}<span class="verdict good">✓ right</span>
{% else %}<span class="verdict bad">✗ wrong</span>
{% endif %}
{% endmacro %}
"""
)
