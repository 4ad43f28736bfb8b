// Draws the views of the network that the peer sends (docs/guide/picture.md). Text of other peers becomes text nodes only.
'use strict';

// A peer that has vanished is shown for this time, in milliseconds.
const LOST_SHOWN = 600000;
// Heartbeats come every 5 s.
const STALE = 12000;

const byId = (id) => document.getElementById(id);
const body = (id) => byId(id).tBodies[0];
let view = null;
let before = null;
let chosen = null;
let heard = 0;
// Peers that were reached, by name: the peer, and when it was last reached.
const known = new Map();

const nick = (peer) => peer.NickName || peer.Name;
const label = (peer) => (peer.NickName ? `${peer.NickName} (${peer.Name})` : peer.Name);
const clock = (time) => new Date(time).toLocaleTimeString();
const number = (n) => n.toLocaleString('en');

function element(parent, tag, attributes) {
  const node = document.createElementNS(parent.namespaceURI, tag);
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  parent.appendChild(node);
  return node;
}

function text(node, value) {
  if (node.textContent !== value) node.textContent = value;
}

// Makes the children of a list or table those of `items`, which are [key, fill]. Children that stay keep the focus.
function update(parent, tag, items) {
  const old = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const [key, fill] of items) {
    let child = old.get(key);
    old.delete(key);
    if (!child) {
      child = document.createElement(tag);
      child.dataset.key = key;
    }
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
    fill(child);
  }
  for (const child of old.values()) child.remove();
}

const lines = (parent, texts) =>
  update(parent, 'li', texts.map((value, index) => [String(index), (item) => text(item, value)]));

function cells(row, values) {
  const heads = row.parentNode.parentNode.tHead.rows[0].cells;
  values.forEach((value, index) => {
    const cell = row.cells[index] || row.insertCell();
    cell.dataset.label = heads[index].textContent;
    text(cell, value);
  });
}

// Connections of this peer by the name of the other: an established one rather than another.
function ownConnections() {
  const found = new Map();
  for (const c of view.Connections) {
    if (c.Name && (!found.has(c.Name) || c.State === 'established')) found.set(c.Name, c);
  }
  return found;
}

function rate(connection, direction) {
  const same = (c) => c.Name === connection.Name && c.Address === connection.Address;
  const old = before && before.Connections.find(same);
  const seconds = before ? (view.Time - before.Time) / 1000 : 0;
  if (!old || !old.Traffic || !connection.Traffic || seconds <= 0) return null;
  const difference = (connection.Traffic[direction] - old.Traffic[direction]) >>> 0;
  return difference < 2 ** 31 ? difference / seconds : 0;
}

const showRate = (value) => (value === null ? '' : `${number(Math.round(value))}/s`);

function roundTrip(connection) {
  const micros = connection && connection.Quality && connection.Quality.RoundTrip;
  if (micros === null || micros === undefined) return '';
  return micros < 10000 ? `${(micros / 1000).toFixed(2)} ms` : `${Math.round(micros / 1000)} ms`;
}

function loss(connection) {
  const quality = connection && connection.Quality;
  return quality && quality.Probes ? `${Math.round(quality.Lost * 100 / quality.Probes)} %` : '';
}

// The peers of the view, and those that have vanished.
function allPeers() {
  const listed = new Set(view.Peers.map((peer) => peer.Name));
  for (const peer of view.Peers) if (peer.Reachable) known.set(peer.Name, { peer, at: view.Time });
  const vanished = [];
  for (const [name, { peer, at }] of known) {
    if (view.Time - at > LOST_SHOWN) known.delete(name);
    else if (!listed.has(name)) vanished.push({ ...peer, Reachable: false, Via: '', IPs: 0, Percent: 0 });
  }
  return view.Peers.concat(vanished);
}

const nickOf = (name) => nick(view.Peers.find((peer) => peer.Name === name) || { Name: name });

const works = (peer, c) => c.State === 'established' && (!peer.Via || peer.Via === peer.Name);

function reached(peer) {
  const last = known.get(peer.Name);
  return peer.Reachable || !last ? peer.Reached : `not reached since ${clock(last.at)}`;
}

function showProblems(peers) {
  const vanished = peers.slice(view.Peers.length).map((peer) => `${label(peer)}: ${reached(peer)}`);
  const found = view.Problems.concat(vanished);
  lines(byId('problems'), found.length ? found : ['none']);
  byId('problems').firstElementChild.className = found.length ? '' : 'none';
}

function showPeers(peers, own) {
  const filter = byId('filter').value.toLowerCase();
  update(body('peers'), 'tr', peers.map((peer) => [peer.Name, (row) => {
    const c = own.get(peer.Name);
    const yes = c && c.Encrypted !== null ? (c.Encrypted ? 'yes' : 'no') : '';
    const share = peer.IPs ? `${number(peer.IPs)} (${peer.Percent.toFixed(1)} %)` : '';
    const count = (n) => (n ? number(n) : '');
    if (!row.cells.length) {
      element(row.insertCell(), 'button', { type: 'button' }).addEventListener('click', () => choose(row.dataset.key));
    }
    const button = row.cells[0].firstChild;
    text(button, label(peer));
    button.setAttribute('aria-pressed', String(peer.Name === chosen));
    cells(row, [button.textContent, reached(peer), yes, roundTrip(c), loss(c),
      c ? showRate(rate(c, 'Sent')) : '', c ? showRate(rate(c, 'Received')) : '',
      c && c.MTU !== null ? String(c.MTU) : '', share, count(peer.MACs), count(peer.Names)]);
    row.className = (peer.Reachable ? '' : 'lost ') + (peer.Name === chosen ? 'chosen' : '');
    row.hidden = !label(peer).toLowerCase().includes(filter);
  }]));
}

function choose(name) {
  chosen = chosen === name ? null : name;
  if (view) draw();
}

function showDetails(peers, own) {
  const peer = peers.find((p) => p.Name === chosen);
  const texts = [];
  if (peer) {
    const c = own.get(peer.Name);
    const position = view.Peers.indexOf(peer);
    const linked = view.Links.filter((l) => l[2] && (l[0] === position || l[1] === position))
      .map((l) => nick(view.Peers[l[0] === position ? l[1] : l[0]]));
    texts.push(`${label(peer)}: ${reached(peer)}`);
    if (c) texts.push(`Connection: ${c.Outbound ? 'to' : 'from'} ${c.Address}, ${c.State}`);
    if (c && c.Reason) texts.push(`Reason: ${c.Reason}`);
    if (c && c.Overlay && !c.Quality) texts.push('Round trip and loss are not measured, as with peers of 2.8.1.');
    if (linked.length) texts.push(`Connected with ${linked.length}: ${linked.join(', ')}`);
    const names = view.Names.filter((n) => n.Origin === peer.Name).map((n) => n.Hostname.replace(/\.$/, ''));
    if (names.length) texts.push(`Names: ${names.join(', ')}`);
  }
  update(byId('details'), 'p', texts.map((value, index) => [String(index), (p) => text(p, value)]));
}

function drawGraph(peers, own) {
  const svg = byId('graph');
  const width = svg.clientWidth || 600;
  const height = svg.clientHeight || 400;
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.textContent = '';
  const others = peers.length - 1;
  const [cx, cy] = [width / 2, height / 2];
  const around = 2 * Math.PI * Math.min(cx, cy);
  const labelled = others <= 12;
  const turned = !labelled && around / others >= 14;
  const longest = 14 + 8 * Math.max(...peers.map((peer) => Math.min(nick(peer).length, 18)));
  const margin = labelled ? [Math.min(90, width / 6), 40] : turned ? [longest, longest] : [20, 20];
  const [rx, ry] = [Math.max(cx - margin[0], 40), Math.max(cy - margin[1], 40)];
  const [rX, rY] = turned ? [Math.min(rx, ry), Math.min(rx, ry)] : [rx, ry];
  // A few peers are on a ring; of many, this one is in the middle.
  const angle = (index) =>
    2 * Math.PI * (labelled ? index / peers.length : (index - 1) / others) - Math.PI / 2;
  const at = peers.map((_, index) => (index || labelled
    ? [cx + rX * Math.cos(angle(index)), cy + rY * Math.sin(angle(index))] : [cx, cy]));
  const [ownX, ownY] = at[0];

  // One path for all links that look alike: thousands of elements would be slow.
  const paths = { '': '', ' half': '', ' chosen': '' };
  for (const [a, b, established] of view.Links) {
    if (a === 0) continue;
    const touches = peers[a].Name === chosen || peers[b].Name === chosen;
    const kind = touches ? ' chosen' : established ? '' : ' half';
    paths[kind] += `M${at[a][0].toFixed(1)} ${at[a][1].toFixed(1)}L${at[b][0].toFixed(1)} ${at[b][1].toFixed(1)}`;
  }
  const many = view.Links.length > 300 ? ' many' : '';
  for (const kind in paths) {
    if (paths[kind]) element(svg, 'path', { class: `others${kind}${kind === ' chosen' ? '' : many}`, d: paths[kind] });
  }
  peers.forEach((peer, index) => {
    const c = own.get(peer.Name);
    if (!c || !index) return;
    const [x, y] = at[index];
    const direct = works(peer, c);
    const traffic = (rate(c, 'Sent') || 0) + (rate(c, 'Received') || 0);
    const line = element(svg, 'line', { class: `link ${(direct && c.Overlay) || 'broken'}`, x1: ownX, y1: ownY, x2: x, y2: y });
    line.style.strokeWidth = (2 + Math.log10(1 + traffic)) / (labelled ? 1 : 3);
    if (!labelled) return;
    const words = direct ? [c.Overlay, roundTrip(c), c.Reason && 'see Problems'] : [c.State];
    if (direct && c.Encrypted) words.push('encrypted');
    words.filter(Boolean).forEach((word, line) => {
      const note = element(svg, 'text', { class: 'note', x: (ownX + 1.4 * x) / 2.4, y: (ownY + 1.4 * y) / 2.4 + 14 * line });
      note.textContent = word;
    });
  });
  peers.forEach((peer, index) => {
    const [x, y] = at[index];
    const state = (index ? '' : ' own') + (peer.Reachable ? '' : ' lost') + (peer.Name === chosen ? ' chosen' : '');
    const node = element(svg, 'g', { class: `node${state}` });
    node.addEventListener('click', () => choose(peer.Name));
    element(node, 'title', {}).textContent = `${label(peer)}: ${reached(peer)}`;
    element(node, 'circle', { cx: x, cy: y, r: labelled ? 11 : index ? 6 : 9 });
    if (!labelled && !turned && index && peer.Name !== chosen) return;
    const short = Array.from(nick(peer)).slice(0, 18).join('');
    let place = { x, y: y + 27, 'text-anchor': 'middle' };
    if (turned && index) {
      const left = Math.cos(angle(index)) < 0;
      const degrees = (angle(index) * 180) / Math.PI + (left ? 180 : 0);
      place = { x: x + (left ? -11 : 11), y: y + 4, 'text-anchor': left ? 'end' : 'start',
        transform: `rotate(${degrees.toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)})` };
    }
    element(node, 'text', place).textContent = short;
  });
}

function drawSpace(peers) {
  const svg = byId('space');
  svg.textContent = '';
  let x = 0;
  for (const peer of peers) {
    if (!peer.Percent) continue;
    const share = element(svg, 'rect', { x, y: 0, width: peer.Percent, height: 1, class: peer.Reachable ? '' : 'lost' });
    element(share, 'title', {}).textContent = `${label(peer)}: ${peer.Percent.toFixed(1)} %`;
    x += peer.Percent;
  }
  text(byId('allocation'), view.Range ? `${view.Range}: ${view.Allocation}` : 'Addresses are not allocated.');
}

function draw() {
  const peers = allPeers();
  const own = ownConnections();
  const { Peers, Links, Containers, Names } = view.Totals;
  document.title = `Weave network: ${nick(view)}`;
  text(byId('self'), label(view));
  const listed = (all, list) => (all > list.length ? `, ${list.length} of them listed` : '');
  const count = (all, what) => `${number(all)} ${what}${all === 1 ? '' : 's'}`;
  text(byId('summary'), `${count(Peers, 'peer')}${listed(Peers, view.Peers)}, ${count(Links, 'link')}${listed(Links, view.Links)}, `
    + `${count(Containers, 'container')} here, ${count(Names, 'name')}${listed(Names, view.Names)}; `
    + `${view.Encryption ? 'with' : 'without'} a password; version ${view.Version}`);
  showProblems(peers);
  showPeers(peers, own);
  showDetails(peers, own);
  drawGraph(peers, own);
  drawSpace(peers);
  const namesOf = (id) => view.Names.filter((n) => n.ContainerID === id && n.Origin === view.Name)
    .map((n) => n.Hostname.replace(/\.$/, '')).join(' ');
  update(body('containers'), 'tr', view.Containers.map((c) =>
    [c.ID, (row) => cells(row, [c.ID.slice(0, 32), c.Addresses.join(' '), namesOf(c.ID)])]));
  update(body('names'), 'tr', view.Names.map((n, index) =>
    [String(index), (row) => cells(row, [n.Hostname.replace(/\.$/, ''), n.Address, nickOf(n.Origin), n.ContainerID.slice(0, 12)])]));
  update(byId('events'), 'li', view.Events.slice().reverse().map((event, index) => [String(index), (item) => {
    if (!item.firstChild) item.append(document.createElement('time'), document.createElement('span'));
    text(item.firstChild, clock(event.Time));
    text(item.lastChild, event.Text);
  }]));
}

function showState(problem) {
  byId('state').className = problem ? 'bad' : '';
  text(byId('state'), problem || `live; latest change ${clock(view.Time)}`);
}

function listen() {
  const source = new EventSource('events');
  source.onmessage = (message) => {
    heard = Date.now();
    before = view;
    view = JSON.parse(message.data);
    showState('');
    draw();
  };
  source.addEventListener('heartbeat', () => { heard = Date.now(); });
  source.onerror = () => {
    showState('no connection to the peer; trying again');
    // The browser gives up if the answer is an error.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  };
}

setInterval(() => {
  const silent = Date.now() - heard;
  if (view && silent > STALE) showState(`the peer has been silent for ${Math.round(silent / 1000)} s`);
}, 1000);
addEventListener('resize', () => { if (view) draw(); });
byId('filter').addEventListener('input', () => { if (view) draw(); });
listen();
