"""The page of the policy server: latencies and sessions, drawn from `/stats`; nothing is asked of the network."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { text-align: right; padding: .2rem 1rem .2rem 0 }
th { font-weight: 600 } #late { color: #a40000 } svg { width: 100%; height: 12rem } .dim { color: #666 }
"""
SCRIPT = """
const text = (id, value) => { document.getElementById(id).textContent = value; };
const ms = value => value === null ? '–' : value.toPrecision(3) + ' ms';
const NS = 'http://www.w3.org/2000/svg';
function mark(kind, attributes, label) {
  const made = document.createElementNS(NS, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (label !== undefined) made.textContent = label;
  return made;
}
function histogram(latency, deadline) {
  const { edges_ms: edges, counts } = latency, most = Math.max(1, ...counts), width = 900 / counts.length;
  const parts = counts.map((n, i) => mark('rect', { x: i * width + 1, width: width - 2, y: 160 - 150 * n / most,
    height: 150 * n / most, fill: i && edges[i - 1] >= deadline ? '#a40000' : '#2b6cb0' }));
  edges.forEach((edge, i) => { if (i % 4 === 0) parts.push(
    mark('text', { x: (i + 1) * width, y: 178, 'font-size': 12, 'text-anchor': 'middle' }, edge.toPrecision(2))); });
  document.getElementById('histogram').replaceChildren(...parts);
}
function sessions(found) {
  const rows = found.map(s => {
    const row = document.createElement('tr');
    for (const value of [s.number, s.batch === null ? 1 : s.batch, s.step, ms(s.latency_ms), s.staleness, s.missed]) {
      const cell = document.createElement('td'); cell.textContent = value; row.append(cell);
    }
    return row;
  });
  document.getElementById('sessions').replaceChildren(...rows);
}
async function refresh() {
  try {
    const found = await (await fetch('/stats' + location.search)).json();
    text('rate', found.hz + ' Hz, deadline ' + ms(found.deadline_ms));
    text('acts', found.latency.acts); text('late', found.latency.missed); text('errors', found.latency.errors);
    text('p50', ms(found.latency.p50_ms)); text('p99', ms(found.latency.p99_ms));
    text('count', found.sessions.length + ' of ' + found.max_sessions);
    histogram(found.latency, found.deadline_ms); sessions(found.sessions); text('state', '');
  } catch (error) { text('state', 'The server does not answer.'); }
  setTimeout(refresh, 500);
}
refresh();
"""
PAGE = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>habitus serve</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style>
<h1>Policy server</h1><p><span id="rate"></span> <span id="state" role="status"></span></p>
<table><tr><th>answers</th><th>late</th><th>errors</th><th>median</th><th>99th percentile</th></tr>
<tr><td id="acts"></td><td id="late"></td><td id="errors"></td><td id="p50"></td><td id="p99"></td></tr></table>
<h2>Latency of the last 4,096 answers</h2>
<svg id="histogram" viewBox="0 0 900 185" role="img" aria-label="Histogram of latencies in milliseconds"></svg>
<p class="dim">Milliseconds from the arrival of a request to its answer; red is beyond the deadline.</p>
<h2>Sessions: <span id="count"></span></h2>
<table><thead><tr><th>session</th><th>batch</th><th>steps</th><th>latency</th><th>staleness</th><th>late</th></tr></thead>
<tbody id="sessions"></tbody></table><script>{SCRIPT}</script></html>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; script-src {_hash(SCRIPT)}; style-src {_hash(STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
