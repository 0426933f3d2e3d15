// The page of kvsvr chat: a client of the gateway as anybody would write it (docs/gateway.md), and nothing else.
//
// What this device has is `copy`: rows by kind, and the sync key that says so. Both are kept in sessionStorage, which is
// one tab's, in one write; only then is a page acknowledged. All that is shown is made from `copy`, whichever way
// a row came. What is to be sent waits in `outbox`, under an id of its own, until the gateway says that it is sent: sent
// again after a break, it is still one message.

const $ = (id) => document.getElementById(id);
const RETRY_MS = [200, 500, 1000, 2000, 5000];
const LOG_COUNT_MAX = 200;

let me = null; // {user, device, ticket}
let copy = fresh();
let socket = null;
let wanted = true; // Whether to be online.
let tries = 0;
let beat = 0;
let open = null; // The conversation that is shown.
let lastNumber = 0;
const started = []; // Conversations that have no message yet.
const replies = new Map(); // Number -> {done, quiet}: who waits for the reply, and whether an error is one like any other.
const figures = { pages: 0, rows: 0, bytes: 0, resyncs: 0 };

function fresh() {
  return { key: null, kinds: {}, outbox: [] };
}

// --- what this device has ---

function take(page) {
  for (const { kind, rows, deleted, resync } of page.changes) {
    if (resync) {
      if (copy.kinds[kind]) figures.resyncs++;
      copy.kinds[kind] = {};
    }
    const mine = (copy.kinds[kind] ??= {});
    for (const [row, value] of rows) mine[row] = value;
    for (const row of deleted) delete mine[row];
    figures.rows += rows.length + deleted.length;
    log(`${kind} +${rows.length}${deleted.length ? ` -${deleted.length}` : ""}${resync ? ", from the beginning" : ""}`);
  }
  copy.key = page.key;
  figures.pages++;
  store();
  say({ do: "ack", key: page.key });
}

function store() {
  try {
    sessionStorage.setItem("copy", JSON.stringify(copy));
  } catch {
    sessionStorage.removeItem("copy"); // It is full. After a reload this device begins anew.
  }
}

// --- the line ---

function connect() {
  if (!wanted || socket) return;
  const line = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/socket`);
  socket = line;
  line.onopen = () => say({ do: "hello", id: "hello", ticket: me.ticket, device: me.device, key: copy.key });
  line.onmessage = ({ data }) => {
    if (socket === line) hear(data);
  };
  line.onclose = ({ code }) => {
    if (socket === line) lost(code);
  };
}

function hear(data) {
  figures.bytes += data.length;
  const frame = JSON.parse(data);
  if (frame.is === "welcome") welcome(frame);
  else if (frame.id === "push") take(frame);
  else if (frame.is === "error" && frame.code === "sync_key") copy = { ...fresh(), outbox: copy.outbox };
  else if (replies.has(frame.id)) {
    const { done, quiet } = replies.get(frame.id);
    replies.delete(frame.id);
    if (frame.is === "error" && !quiet) complain(frame);
    done(frame);
  } else if (frame.is === "error") complain(frame);
  show();
}

function welcome(frame) {
  tries = 0;
  clearInterval(beat);
  beat = setInterval(() => say({ do: "beat" }), frame.beat * 1000);
  log("online");
  for (const one of copy.outbox) post(one);
}

function lost(code) {
  hangUp();
  if (code === 4401) logout("Your ticket has ended.");
  else if (wanted && me) {
    log(`lost (${code})`);
    setTimeout(connect, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
  }
  show();
}

function hangUp() {
  const line = socket;
  socket = null;
  line?.close();
  clearInterval(beat);
  for (const { done } of replies.values()) done(null);
  replies.clear();
}

function say(frame) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(frame));
  const { ticket, key, ...rest } = frame;
  log(JSON.stringify(rest), "out");
  return true;
}

// The reply, or null if the line is, or gets, lost.
function ask(frame, quiet = false) {
  return new Promise((done) => {
    const id = ++lastNumber;
    if (say({ id, ...frame })) replies.set(id, { done, quiet });
    else done(null);
  });
}

// --- what is done ---

async function login(user) {
  const answer = await fetch("v1/login", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ user }),
  });
  const found = await answer.json();
  if (found.is === "error") throw new Error(`${found.message}: ${found.cure}`);
  become({ user, ticket: found.ticket });
  begin();
}

// A device that has nothing yet.
function become({ user, ticket }) {
  me = { user, ticket, device: `tab-${random().slice(0, 6)}` };
  copy = fresh();
  sessionStorage.setItem("me", JSON.stringify(me));
  sessionStorage.removeItem("copy");
}

// A tab that was duplicated has what the other one stored, and is to be a device of its own.
async function begin() {
  while (!(await held(me.device))) become(me);
  wanted = true;
  $("login").hidden = true;
  $("chat").hidden = false;
  connect();
  show();
}

// Whether no other tab is this device; it is this one's then, as long as the page lives.
function held(device) {
  if (!navigator.locks) return true; // Only pages of this machine, and by https, have them.
  return new Promise((answer) =>
    navigator.locks.request(device, { ifAvailable: true }, (lock) => {
      answer(lock !== null);
      return lock && new Promise(() => {});
    }),
  );
}

function logout(why = "") {
  me = open = null;
  wanted = false;
  started.length = 0;
  copy = fresh();
  sessionStorage.clear();
  hangUp();
  $("login").hidden = false;
  $("chat").hidden = true;
  $("login-error").textContent = why;
}

function send(text) {
  const one = { to: open, text, client_id: random() };
  copy.outbox.push(one);
  store();
  post(one);
}

async function post(one) {
  const reply = await ask({ do: "send", ...one });
  if (reply === null || ["unavailable", "uncertain", "busy", "stopping", "too_many"].includes(reply.code)) {
    if (reply !== null) setTimeout(() => copy.outbox.includes(one) && post(one), 1000);
    return;
  }
  copy.outbox = copy.outbox.filter((other) => other !== one);
  store();
  show();
}

async function enter(group) {
  const joined = await ask({ do: "join", group }, true);
  const reply = joined?.code === "unknown" ? await ask({ do: "create", group, name: group, open: true }) : joined;
  if (reply?.is === "epoch") choose(`g/${group}`);
  else if (reply) complain(reply);
}

function choose(conversation) {
  open = conversation;
  if (!started.includes(open)) started.push(open);
  $("error").textContent = "";
  show();
  $("text").focus();
}

// Whether what is here is what the gateway would give: the count of the inbox, from the first row it still has.
async function check() {
  const sum = await ask({ do: "check", kind: "inbox" });
  if (sum?.is !== "sum") return;
  const count = Object.keys(copy.kinds.inbox ?? {}).filter((row) => bytes(row) >= bytes(sum.first)).length;
  log(count === sum.count ? `the copy is right: ${count} rows` : `the copy has ${count} rows, and ${sum.count} are there`);
}

function complain({ message, cure }) {
  $("error").textContent = `${message}: ${cure}`;
}

// --- what is shown, all of it from `copy` ---

const bytes = (base64) => atob(base64);
const text = (base64) => new TextDecoder().decode(Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)));
const random = () => [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16).padStart(2, "0")).join("");

function byName(kind) {
  return Object.fromEntries(Object.entries(copy.kinds[kind] ?? {}).map(([row, value]) => [text(row), value]));
}

function conversations() {
  const found = new Map(started.map((name) => [name, []]));
  for (const [group, { member }] of Object.entries(byName("groups"))) if (member) found.set(`g/${group}`, []);
  for (const [kind, rows] of Object.entries(copy.kinds)) {
    if (kind !== "inbox" && !kind.startsWith("g/")) continue;
    for (const message of Object.values(rows)) {
      if (message === null) continue; // Its body is no more.
      const name = message.to.startsWith("g/") || message.sender === me.user ? message.to : `u/${message.sender}`;
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(message);
    }
  }
  for (const messages of found.values()) messages.sort((a, b) => a.seq - b.seq);
  return found;
}

function show() {
  if (!me) return;
  const all = conversations();
  const online = socket?.readyState === WebSocket.OPEN;
  $("me").textContent = me.user;
  $("device").textContent = me.device;
  $("line").textContent = wanted ? (online ? "online" : "connecting") : "offline";
  $("chat").classList.toggle("offline", !online);
  for (const [name, value] of Object.entries(figures)) $(name).textContent = value;
  $("key").textContent = copy.key ?? "none";
  const marks = byName("marks");
  $("conversations").replaceChildren(...[...all].map(([name, messages]) => listed(name, messages, marks[name] ?? 0)));
  showOpen(all.get(open) ?? [], marks[open] ?? 0);
}

function listed(name, messages, mark) {
  const unread = messages.filter((one) => one.seq > mark && one.sender !== me.user).length;
  const item = element("li", name === open ? "open" : "", element("span", "", title(name)));
  item.dataset.name = name;
  if (unread && name !== open) item.append(element("span", "unread", String(unread)));
  item.onclick = () => choose(name);
  return item;
}

const title = (name) => (name.startsWith("g/") ? `# ${name.slice(2)}` : name.slice(2));

function showOpen(messages, mark) {
  const group = open?.startsWith("g/") ? open.slice(2) : null;
  const member = group !== null && byName("groups")[group]?.member;
  $("title").textContent = open ? title(open) : "Nobody yet";
  $("people").textContent = member === false && byName("groups")[group] ? "you have left" : "";
  $("invite").hidden = $("leave").hidden = !member;
  $("text").disabled = open === null;
  const here = new Set(messages.filter((one) => one.sender === me.user).map((one) => one.client_id));
  const pending = copy.outbox.filter((one) => one.to === open && !here.has(one.client_id));
  $("messages").replaceChildren(...messages.map(drawn), ...pending.map((one) => element("li", "mine pending", one.text)));
  $("messages").lastElementChild?.scrollIntoView({ block: "nearest" });
  const last = messages.at(-1)?.seq ?? 0;
  if (last > mark && document.visibilityState === "visible") mark_(last);
}

let marking = null;
function mark_(seq) {
  const what = `${open} ${seq}`;
  if (marking === what) return; // Said already; the row comes by push.
  if (say({ do: "mark", conversation: open, seq })) marking = what;
}

function drawn(message) {
  const mine = message.sender === me.user;
  const said = message.recalled ? "taken back" : message.text;
  const item = element("li", [mine && "mine", message.recalled && "recalled"].filter(Boolean).join(" "));
  if (!mine) item.append(element("small", "", message.sender));
  item.append(element("span", "", said));
  if (mine && !message.recalled) {
    const button = element("button", "recall", "×");
    button.title = "Take it back";
    const source = message.to.startsWith("g/") ? message.to : `u/${me.user}`;
    button.onclick = () => ask({ do: "recall", source, seq: message.seq });
    item.append(button);
  }
  return item;
}

// Whatever a message says becomes text, never markup.
function element(name, kind, ...content) {
  const made = document.createElement(name);
  made.className = kind;
  made.append(...content);
  return made;
}

function log(line, kind = "in") {
  $("log").prepend(element("li", kind, `${kind === "out" ? "→" : "←"} ${line}`));
  while ($("log").childElementCount > LOG_COUNT_MAX) $("log").lastElementChild.remove();
}

// --- forms and buttons ---

function onSubmit(form, input, act) {
  $(form).onsubmit = (event) => {
    event.preventDefault();
    const value = $(input).value.trim();
    $(input).value = "";
    if (value) act(value);
  };
}

onSubmit("login", "name", (name) => login(name).catch((error) => ($("login-error").textContent = error.message)));
onSubmit("talk", "other", (user) => choose(`u/${user}`));
onSubmit("make", "group", enter);
onSubmit("invite", "guest", (user) => ask({ do: "invite", group: open.slice(2), user }));
onSubmit("send", "text", (said) => {
  send(said);
  show();
});
$("leave").onclick = () => ask({ do: "leave", group: open.slice(2) });
$("check").onclick = check;
$("logout").onclick = () => logout();
$("line").onclick = () => {
  wanted = !wanted;
  if (wanted) connect();
  else {
    hangUp();
    log("offline");
  }
  show();
};
document.onvisibilitychange = show;

me = JSON.parse(sessionStorage.getItem("me"));
if (me) {
  copy = JSON.parse(sessionStorage.getItem("copy")) ?? fresh();
  begin();
}
