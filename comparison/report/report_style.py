"""The style sheet of report_page.py; colours and marks, also of figure.py.

Colours are Okabe and Ito's, which colour-blind readers tell apart; each arm has a mark and a dash pattern of its own too.
"""

COLOURS = """\
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #1c1e21; --muted: #5c6167; --rule: #dedfda;
  --grid: #e8e8e3; --good: #00694c; --bad: #a84300;
  --arm0: #0072b2; --arm1: #d55e00; --arm2: #009e73; --arm3: #b8568f; --arm4: #b07d00; --deaf: #6b7076; }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1b1e22; --ink: #eceded; --muted: #a3a9b0;
  --rule: #33383e; --grid: #2a2e33; --good: #4fd3ac; --bad: #ff9a5c;
  --arm0: #56b4e9; --arm1: #f0803c; --arm2: #1fc796; --arm3: #cc79a7; --arm4: #f0e442; --deaf: #a9afb6; } }
"""
MARKS = """\
.arm0 { --tone: var(--arm0); } .arm1 { --tone: var(--arm1); --dash: 7 3; } .arm2 { --tone: var(--arm2); --dash: 2 3; }
.arm3 { --tone: var(--arm3); --dash: 9 3 2 3; } .arm4 { --tone: var(--arm4); --dash: 12 4; }
.deaf { --tone: var(--deaf); --dash: 4 4; } .base { --tone: var(--muted); } .pair { --tone: var(--ink); }
svg { display: block; overflow: visible; flex: none; }
svg text { fill: var(--muted); font: .8125rem system-ui, sans-serif; }
.mark { fill: var(--tone); stroke: var(--tone); stroke-width: 1; }
.mark.deaf, .deaf .mark { fill: var(--page); stroke-width: 2; }
.control { fill: none; stroke: var(--ink); stroke-width: 1.4; }
.line { fill: none; stroke: var(--tone); stroke-width: 2; stroke-dasharray: var(--dash, none); stroke-linejoin: round;
  vector-effect: non-scaling-stroke; }
.whisker { stroke: var(--tone); stroke-width: 2; opacity: .65; }
.panel .whisker, .lead { stroke-width: 1; stroke: var(--tone); opacity: .6; }
.panel .name { fill: var(--ink); font-size: .75rem; }
.majority { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 3 2; }
.grid { stroke: var(--grid); } .zero { stroke: var(--muted); }
"""
STYLE = (
    COLOURS
    + MARKS
    + """\
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
a { color: inherit; text-underline-offset: .2em; text-decoration-color: var(--muted); }
.muted, small, figcaption { color: var(--muted); font-size: .875rem; }
.claim { font-size: 1.0625rem; max-width: 50rem; border-left: 4px solid var(--arm0); padding: .1rem 0 .1rem 1rem;
  margin: 1rem 0; }
.note { border-left: 4px solid var(--arm4); background: var(--card); padding: .75rem 1rem; border-radius: 0 .5rem .5rem 0;
  margin: 1rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 1.25rem 0 0; font-size: .9375rem; }
nav a { padding: .3rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 .5rem;
  padding: 0; list-style: none; }
.cards li { background: var(--card); border: 1px solid var(--rule); border-top: 3px solid var(--tone); border-radius: .5rem;
  padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em; font-weight: 650; }
.cards small { display: block; }
table, b, small, text { font-variant-numeric: tabular-nums; }
:focus-visible { outline: 3px solid var(--arm0); outline-offset: 2px; border-radius: .2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--rule); border-radius: .5rem; background: var(--card); }
.hint { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; line-height: 1.3; }
th, td { padding: .5rem .75rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 500; white-space: normal;
  min-width: 8.75rem; z-index: 1; }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 1px solid var(--rule); }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--grid); }
tbody th[colspan] { padding-top: 1.1rem; font-size: .8125rem; font-weight: 650; color: var(--muted);
  border-bottom: 1px solid var(--rule); }
td small, th small { display: block; font-weight: 400; }
td.n, td.base { color: var(--muted); }
td.words, th.words { text-align: left; }
tr.first td, tr.first th { font-weight: 650; }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; margin: .75rem 0 1rem; max-width: none; font-size: .9375rem; }
.legend + .legend { margin-top: -.5rem; font-size: .875rem; color: var(--muted); }
.key { display: inline-flex; align-items: center; gap: .45rem; vertical-align: bottom; min-width: 0; overflow-wrap: anywhere; }
.dots h3 { margin: 1.25rem 0 .35rem; font-size: .8125rem; color: var(--muted); }
.dots .row { display: grid; grid-template-columns: 11rem 1fr; gap: 0 1.25rem; align-items: center;
  border-top: 1px solid var(--grid); padding: .15rem .75rem .15rem 0; }
.dots .row.axis { border-top: 1px solid var(--rule); }
.dots .row small { display: block; }
.dots .label { overflow-wrap: anywhere; line-height: 1.35; }
.pairs .row { grid-template-columns: 19rem 1fr; padding-top: .3rem; padding-bottom: .3rem; }
.chart { padding: .75rem 1rem 0 2.75rem; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .5rem 1.5rem; }
.panels { display: flex; flex-wrap: wrap; gap: .5rem; }
.panels .panel { flex: 1 1 22rem; max-width: 34rem; min-width: 0; height: auto; }
.multiples h3 { margin: .75rem 0 0; }
.bins { fill: var(--tone); fill-opacity: .8; stroke: var(--page); }
.gap { stroke: var(--tone); stroke-width: 1.5; opacity: .5; }
details > summary { cursor: pointer; padding: .4rem 0; }
.filters { border: 1px solid var(--rule); border-radius: .75rem; background: var(--card); padding: .6rem 1rem .9rem;
  order: -2; display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: end; }
.filters fieldset { border: 0; margin: 0; padding: 0; min-width: 0; display: flex; flex-wrap: wrap; gap: .35rem; }
.filters .whole { width: 100%; }
.filters legend { font-size: .8125rem; font-weight: 650; color: var(--muted); padding: 0 0 .2rem; }
.chip { display: inline-flex; align-items: center; gap: .4rem; padding: .3rem .7rem; border: 1px solid var(--rule);
  border-radius: 1rem; font-size: .875rem; cursor: pointer; }
.chip:has(:checked) { border-color: var(--ink); background: var(--grid); }
.chip input { margin: 0; accent-color: var(--arm0); width: 1rem; height: 1rem; }
button { font: inherit; font-size: .875rem; color: inherit; background: none; border: 1px solid var(--muted);
  border-radius: .4rem; padding: .3rem .8rem; cursor: pointer; }
.browser { display: flex; flex-direction: column; counter-reset: shown; }
.browser > * { min-width: 0; }
.browser .count { margin: .75rem 0 .25rem; font-weight: 600; order: -1; }
.count::before { content: counter(shown); }
.asked { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem; margin: .35rem 0;
  counter-increment: shown; }
.asked > summary { padding: .65rem 1.1rem .75rem 2.1rem; list-style: none; position: relative; }
.asked > summary::-webkit-details-marker { display: none; }
.asked > summary::before { content: ""; position: absolute; left: .95rem; top: 1rem; border: .3rem solid transparent;
  border-left: .42rem solid var(--muted); }
.asked[open] > summary::before { transform: rotate(90deg); transform-origin: .15rem 50%; }
.asked summary > * { display: block; overflow-wrap: anywhere; }
.asked .short { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.asked[open] .short { display: none; }
.asked .answers { display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; font-size: .875rem; margin-top: .3rem; }
.inside { padding: .25rem 1.1rem 1.1rem; border-top: 1px solid var(--grid); }
.inside h4 { margin: 1.1rem 0 .3rem; font-size: .8125rem; color: var(--muted); }
.question { font-size: 1.0625rem; font-weight: 550; line-height: 1.4; margin: .15rem 0; }
.filters .mark.deaf, .filters .deaf .mark, .asked .mark.deaf, .asked .deaf .mark, li .deaf .mark, table .deaf .mark {
  fill: var(--card); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .5rem 2rem;
  margin-top: .75rem; }
.players { display: grid; gap: .75rem; align-content: start; min-width: 0; }
figure { margin: 0; min-width: 0; max-width: 32rem; }
figcaption { overflow-wrap: anywhere; }
audio { display: block; width: 100%; height: 2.75rem; margin-top: .15rem; }
.spectrum { padding: .6rem .5rem 0 2rem; } .spectrum text { font-size: .75rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1rem; margin: 0; align-content: start; }
dt { color: var(--muted); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; max-width: 44rem; }
.truth { font-weight: 600; }
.verdict { font-size: .8125rem; font-weight: 650; white-space: nowrap; margin-right: .4rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.options { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: .7rem 2rem; }
.options p { margin: 0; font-size: .9375rem; }
.bar { display: grid; grid-template-columns: 16px 1fr 6.5rem; gap: .5rem; align-items: center; font-size: .8125rem;
  line-height: 1.2; color: var(--muted); font-variant-numeric: tabular-nums; }
.bar .track { fill: var(--grid); } .bar .fill { fill: var(--tone); }
.bar span { white-space: nowrap; }
.bar.picked span { color: var(--ink); font-weight: 650; }
.asked .scroll { margin: .3rem 0 0; width: fit-content; max-width: 100%; } .asked table { font-size: .8125rem; width: auto; }
.asked th, .asked td { padding: .3rem .75rem; }
footer { margin-top: 3.5rem; padding-bottom: 3rem; }
footer ul { padding-left: 1.1rem; margin: .4rem 0 1.25rem; } footer li { margin: .3rem 0; overflow-wrap: anywhere; }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, monospace; background: var(--grid); padding: .1em .35em;
  border-radius: .25rem; overflow-wrap: anywhere; }
@supports not selector(:has(*)) { .filters { display: none; } }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; } main, footer { padding-left: 1rem; padding-right: 1rem; }
  .hint { display: inline; }
  .dots .row { grid-template-columns: minmax(0, 1fr); padding: .45rem .75rem .45rem .5rem; }
  .dots .row .label { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: baseline; gap: 0 1rem; }
  .dots .row.axis .label { display: none; }
  .accuracy .n { display: none; }
  table { font-size: .875rem; } td small { font-size: .75rem; } th, td { padding: .4rem .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  .asked > summary, .inside { padding-right: .8rem; } .inside { padding-left: .8rem; }
}
"""
)
