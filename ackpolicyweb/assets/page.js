"use strict";
// Keeps the page as the server shows it: the elements that change come as HTML, by their ids, and
// only what differs is touched, so that focus, selection and what somebody types stay.
(() => {
	const at = id => document.getElementById(id);
	const title = document.body.dataset.title;
	const still = at("hold");
	let source = null, timer = 0, every = 2000, held = false;

	function morph(have, want) {
		if (have.nodeType !== want.nodeType || have.nodeName !== want.nodeName) {
			have.replaceWith(want);
		} else if (have.nodeType !== Node.ELEMENT_NODE) {
			if (have.data !== want.data) have.data = want.data;
		} else {
			for (const a of [...have.attributes]) {
				if (a.name !== "open" && !want.hasAttribute(a.name)) have.removeAttribute(a.name);
			}
			for (const a of want.attributes) {
				if (have.getAttribute(a.name) !== a.value) have.setAttribute(a.name, a.value);
			}
			morphChildren(have, want);
		}
	}

	function morphChildren(have, want) {
		const byID = new Map();
		for (const c of have.children) if (c.id) byID.set(c.id, c);
		let next = have.firstChild;
		for (const w of [...want.childNodes]) {
			let h = null;
			if (w.id) h = byID.get(w.id) || null;
			else if (next && !next.id && next.nodeName === w.nodeName) h = next;
			if (!h) have.insertBefore(w, next);
			else {
				if (h === next) next = next.nextSibling;
				else have.insertBefore(h, next);
				morph(h, w);
			}
		}
		while (next) {
			const gone = next;
			next = next.nextSibling;
			gone.remove();
		}
	}

	// Of hundreds of rows only those near what is seen are touched; the others are when they come near.
	const later = new Map(), near = new Set(), watched = new WeakSet();
	const parse = document.createElement("template");
	const rows = new IntersectionObserver(entries => {
		for (const e of entries) {
			if (!e.isIntersecting) {
				near.delete(e.target.id);
				continue;
			}
			near.add(e.target.id);
			const html = later.get(e.target.id);
			if (html) apply(e.target, html);
		}
	}, {rootMargin: "600px"});

	function apply(have, html) {
		later.delete(have.id);
		parse.innerHTML = html;
		const want = parse.content.firstElementChild;
		if (want) morph(have, want);
	}

	function watchRows() {
		for (const r of document.querySelectorAll("tbody > tr[id]")) {
			if (!watched.has(r)) {
				watched.add(r);
				rows.observe(r);
			}
		}
	}

	function show(changes) {
		const focus = document.activeElement;
		for (const [id, html] of changes) {
			const have = at(id);
			if (!have) continue;
			if (have.nodeName !== "TR" || near.has(id) || have.contains(focus)) apply(have, html);
			else later.set(id, html);
			if (have.nodeName !== "TR") watchRows();
		}
		if (focus && focus !== document.body && document.activeElement !== focus) {
			const again = focus.isConnected ? focus : at(focus.id) || at("verdict");
			if (again) again.focus({preventScroll: true});
		}
		const n = Number(at("verdict").dataset.count);
		document.title = (n ? "(" + n + ") " : "") + title;
	}

	function lost() {
		at("dot").className = "dot off";
		at("lost").textContent = "Not live: no response since " + at("time").textContent + ". It is tried again.";
	}

	function open() {
		close();
		source = new EventSource("live" + document.body.dataset.live.slice("live".length));
		source.onmessage = e => {
			const event = JSON.parse(e.data);
			every = event.every;
			at("time").textContent = event.t;
			at("dot").className = "dot on";
			if (at("lost").textContent) at("lost").textContent = "";
			if (event.set) show(event.set);
			watch();
		};
		source.onerror = () => {
			lost();
			if (source && source.readyState === EventSource.CLOSED) timer = setTimeout(open, 3000);
		};
		watch();
	}

	function watch() {
		clearTimeout(timer);
		timer = setTimeout(() => { lost(); open(); }, 3 * every + 5000);
	}

	function close() {
		clearTimeout(timer);
		if (source) source.close();
		source = null;
	}

	still.hidden = false;
	still.addEventListener("click", () => {
		held = !held;
		still.setAttribute("aria-pressed", held);
		at("dot").className = "dot";
		held ? close() : open();
	});
	document.addEventListener("visibilitychange", () => {
		if (!held) document.hidden ? close() : open();
	});

	document.addEventListener("submit", async e => {
		const form = e.target, said = at("said");
		e.preventDefault();
		if (form.dataset.busy) return;
		form.dataset.busy = "1";
		said.textContent = "";
		try {
			const response = await fetch(form.action, {
				method: "POST", headers: {Accept: "text/plain"}, body: new URLSearchParams(new FormData(form)),
			});
			said.textContent = await response.text();
			if (response.ok) {
				for (const d of [form.closest("details")]) if (d) d.open = false;
				if (!held) open();
			}
		} catch (err) {
			said.textContent = "Not done: " + err.message;
		}
		delete form.dataset.busy;
	});
	watchRows();
	open();
})();
