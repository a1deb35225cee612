// Keeps a page up to date: without this script it is right when it is loaded, with it it stays right.
'use strict';
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const LANES = 12, BOAT = 124, SHOWN = 20, CARDS = 4;
  const FINAL = ['done', 'failed', 'dead', 'cancelled'];

  // What this tab stores from page to page.
  const load = name => { try { return JSON.parse(sessionStorage[name]); } catch { return []; } };
  const store = (name, list) => { try { sessionStorage[name] = JSON.stringify(list); } catch {} };

  // Open streams. A dead connection may show no error: when one is found, all streams are opened anew.
  const streams = new Set();
  const renew = () => streams.forEach(open => open());

  // A browser has six connections to a host for all its tabs, so a hidden page closes its own, except for a stream that
  // could not resume.
  function subscribe(address, handlers, resumes = () => true) {
    const closed = new AbortController();
    let source, timer, wait = 1000;
    const reopen = () => source && open();
    const close = () => { clearTimeout(timer); source?.close(); source = undefined; };
    const open = () => {
      close();
      const own = source = new EventSource(address());
      own.addEventListener('open', () => wait = 1000);
      // The browser connects again by itself, unless the response was an error.
      own.addEventListener('error', () => {
        if (own !== source || own.readyState !== EventSource.CLOSED) return;
        timer = setTimeout(open, wait * (.5 + Math.random()));
        wait = Math.min(wait * 2, 60000);
      });
      for (const name in handlers) own.addEventListener(name, event => own === source && handlers[name](event));
    };
    const follow = () => document.hidden ? resumes() && close() : source || open();
    const { signal } = closed;
    document.addEventListener('visibilitychange', follow, { signal });
    addEventListener('pagehide', close, { signal });
    addEventListener('pageshow', event => event.persisted && follow(), { signal });
    streams.add(reopen);
    follow();
    return () => { closed.abort(); close(); streams.delete(reopen); };
  }

  // Requests JSON, highlights the worker that answered, and throws the problem of an error response.
  async function request(method, path, body) {
    const headers = { accept: 'application/json', ...body && { 'content-type': 'application/json' } };
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    } catch { throw Error('the server cannot be reached'); }
    highlight(response.headers.get('x-worker-id'));
    const answer = await response.json().catch(() => ({})), { status } = response;
    if (!response.ok) throw Object.assign(Error(answer.detail || answer.title || `status ${status}`), { status });
    return answer;
  }

  // Disables the button meanwhile, and shows the result beside it.
  async function submit(form, work) {
    const button = $('button', form), notice = $('.notice', form.parentNode);
    button.disabled = true;
    try { notice.textContent = await work() || ''; notice.classList.remove('wrong'); }
    catch (error) { notice.textContent = error.message; notice.classList.add('wrong'); }
    button.disabled = false;
  }

  // Lanes are those of this instance only.
  function highlight(pid, host) {
    const lane = pid && $(`.lane[data-pid="${CSS.escape(pid)}"]`);
    if (!lane || host && host !== lane.parentNode.dataset.host) return;
    lane.classList.remove('lit');
    void lane.offsetWidth;
    lane.classList.add('lit');
  }

  function workers(lanes) {
    const draw = (lane, slot, most) => {
      const at = Math.min(100, Math.floor(slot.requests * 100 / most)), back = Math.floor(at * BOAT / 100);
      lane.dataset.slot = slot.slot;
      lane.dataset.pid = slot.pid || '';
      lane.classList.toggle('absent', slot.state !== 'ready');
      $('.boat', lane).setAttribute('x', `${at}%`);
      $('.boat use', lane).setAttribute('x', -back);
      $('.boat use + use', lane)?.setAttribute('x', 100 - back);
      $('.slot', lane).textContent = slot.slot;
      $('.pid', lane).textContent = !slot.pid ? 'no worker' : slot.state === 'ready' ? slot.pid : `${slot.pid} ${slot.state}`;
      $('.count', lane).textContent = grouped(slot.requests);
    };
    const blank = lanes.firstElementChild.cloneNode(true);
    blank.classList.remove('yours');
    blank.removeAttribute('aria-current');
    blank.querySelectorAll('.served-you, use + use').forEach(part => part.remove());
    // An event may be older than the page or than one before it: a count never decreases. While Redis is unavailable no
    // total is shown.
    let counted = +$('#total').textContent.replace(/\D/g, '');
    const show = ({ total, here, slots }) => {
      if (total != null) counted = Math.max(counted, total);
      $('#total').textContent = total == null ? '–' : grouped(counted);
      if (here != null) $('#here').textContent = grouped(Math.max(here, 1));
      $('#here').parentNode.hidden = here == null;
      const own = $('.yours', lanes), at = new Map([...lanes.children].map(lane => [+lane.dataset.slot, lane]));
      const most = Math.max(1, ...slots.map(slot => slot.requests));
      for (const slot of slots) {
        let lane = at.get(slot.slot);
        if (!lane && lanes.children.length < LANES) {
          lane = blank.cloneNode(true);
          lanes.insertBefore(lane, [...lanes.children].find(other => +other.dataset.slot > slot.slot) ?? null);
        }
        if (lane) draw(lane, slot, most);
        at.delete(slot.slot);
      }
      for (const lane of at.values()) lane === own ? lane.classList.add('absent') : lane.remove();
    };
    // An event is due every 15 seconds.
    let watchdog;
    const restartWatchdog = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => { renew(); restartWatchdog(); }, 40000);
    };
    subscribe(() => '/live', { open: restartWatchdog, message: event => { restartWatchdog(); show(JSON.parse(event.data)); } });
    highlight(lanes.querySelector('.yours')?.dataset.pid);
  }

  function broadcast(form) {
    const log = $('.log'), messages = load('messages');
    let opened;
    const open = new Promise(resolve => opened = resolve);
    const add = (text, id) => {
      const line = document.createElement('li'), body = document.createElement('span');
      body.textContent = text;
      line.append(body);
      if (id) {
        const time = document.createElement('time'), at = new Date(parseInt(id));
        time.dateTime = at.toISOString();
        time.textContent = at.toLocaleTimeString();
        line.append(time);
      } else line.className = 'note';
      log.prepend(line);
      while (log.children.length > SHOWN) log.lastChild.remove();
      log.hidden = false;
    };
    messages.forEach(([text, id]) => add(text, id));
    // The id to resume from, known before the first message.
    let lastId = load('last-id')[0] ?? messages.at(-1)?.[1];
    const received = id => store('last-id', [lastId = id]);
    const resume = () => lastId ? `&last_event_id=${lastId}` : '';
    subscribe(() => `/events?topic=news${resume()}`, {
      open: opened,
      start: ({ data }) => received(data),
      gap: () => add('Some messages may be missing.'),
      lagged: () => add('This page fell behind; it connects again.'),
      message: ({ data, lastEventId }) => {
        add(data, lastEventId);
        received(lastEventId);
        store('messages', (messages.push([data, lastEventId]), messages.splice(0, messages.length - SHOWN), messages));
      },
    }, () => lastId);
    form.addEventListener('submit', event => {
      event.preventDefault();
      submit(form, async () => {
        // A client that publishes before it subscribes would not receive its own message.
        await Promise.race([open, new Promise(resolve => setTimeout(resolve, 2000))]);
        await request('POST', '/broadcast', { topic: 'news', message: form.elements.message.value });
        form.elements.message.value = '';
      });
    });
  }

  // Follows a task on its card until it ends or the card is removed. One card has a stream, and the others poll: a page
  // must not use up the browser's connections, or no button works.
  const stops = new WeakMap();
  let streamed;
  function follow(card) {
    const path = `/tasks/${card.dataset.task}`, cancel = $('.cancel', card);
    let state, timer, close, stopped = false;
    const stop = () => {
      stopped = true;
      clearTimeout(timer);
      close?.();
      if (streamed === card) streamed = undefined;
    };
    stops.set(card, stop);
    const poll = async () => {
      if (!streamed) {
        streamed = card;
        close = subscribe(() => `${path}/events`, { message: event => show(JSON.parse(event.data)) });
        return;
      }
      if (!document.hidden) await request('GET', path).then(show, ({ status }) => status === 404 && stop());
      if (!stopped) timer = setTimeout(poll, 1500);
    };
    const show = task => {
      const { percent, worker, attempts, result, error } = task;
      $('progress', card).value = percent;
      $('.percent', card).textContent = `${percent} %`;
      if (state !== task.state) {
        card.dataset.state = state = task.state;
        const where = worker && state !== 'waiting' && state !== 'scheduled' ? ` in worker ${worker}` : '';
        $('.state', card).textContent = state + where + (attempts > 1 ? `, attempt ${attempts}` : '');
        if (state === 'running') highlight(...worker.split(':').reverse());
      }
      cancel.hidden = FINAL.includes(state);
      if (!cancel.hidden) return;
      const live = !stopped;
      stop();
      $('.outcome', card).textContent = error || summary(result);
      // The task's own page has the whole result, too.
      if (live && card.parentNode.matches('.alone')) location.reload();
    };
    if (FINAL.includes(card.dataset.state)) stop(); else poll();
    cancel.addEventListener('submit', event => {
      event.preventDefault();
      submit(cancel, () => request('DELETE', path).then(() => ''));
    });
    return show;
  }

  function summary(result) {
    const { value, digits, count } = result ?? {};
    if (value) return value.length < 60 ? value : `${value.slice(0, 16)}…${value.slice(-16)} (${grouped(digits)} digits)`;
    return count == null ? '' : `${grouped(count)} primes`;
  }

  function tasks(form) {
    const cards = $('.cards'), list = load('tasks');
    const add = (id, title) => {
      const card = $('#card').content.firstElementChild.cloneNode(true), link = $('h3 a', card);
      card.dataset.task = id;
      link.href = `/tasks/${id}`;
      link.textContent = title;
      $('.cancel', card).action = `/tasks/${id}/cancel`;
      cards.prepend(card);
      while (cards.children.length > CARDS) {
        stops.get(cards.lastChild)?.();
        cards.lastChild.remove();
      }
      return card;
    };
    const restore = async () => {
      for (const [id, title] of [...list]) {
        const task = await request('GET', `/tasks/${id}`).catch(() => undefined);
        if (!task) continue;
        const card = add(id, title);
        card.dataset.state = task.state;
        follow(card)(task);
      }
    };
    restore();
    form.addEventListener('submit', event => {
      event.preventDefault();
      submit(form, async () => {
        const { kind, n } = form.elements;
        const { id } = await request('POST', '/tasks', { kind: kind.value, n: +n.value });
        const title = `${kind.selectedOptions[0].dataset.title} ${grouped(n.value)}`;
        store('tasks', (list.push([id, title]), list.splice(0, list.length - CARDS), list));
        follow(add(id, title));
      });
    });
  }

  const on = (selector, run) => document.querySelectorAll(selector).forEach(run);
  on('.lanes', workers);
  on('#broadcast-form', broadcast);
  on('#task-form', tasks);
  on('.card[data-task]', follow);
})();
