// What a page shows once more, as it goes on: without this script it is right, with it it stays right.
'use strict';
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, '\u202f');
  const LANES = 12, BOAT = 124, SHOWN = 20, CARDS = 4;
  const ENDS = ['done', 'failed', 'dead', 'cancelled'];

  // What this tab remembers from page to page.
  const kept = name => { try { return JSON.parse(sessionStorage[name]); } catch { return []; } };
  const keep = (name, list) => { try { sessionStorage[name] = JSON.stringify(list); } catch {} };

  // Streams that are open. A connection may be dead without anyone being told: who finds out tells the others.
  const streams = new Set();
  const renew = () => streams.forEach(open => open());

  // A browser has six connections to a host for all its tabs: a page that no one looks at gives its own back,
  // except for a stream that would not know where to go on.
  function listen(address, handlers, resumes = () => true) {
    const gone = new AbortController();
    let source, timer, wait = 1000;
    const again = () => source && open();
    const close = () => { clearTimeout(timer); source?.close(); source = undefined; };
    const open = () => {
      close();
      const own = source = new EventSource(address());
      own.addEventListener('open', () => wait = 1000);
      // It comes again by itself, unless it was refused.
      own.addEventListener('error', () => {
        if (own !== source || own.readyState !== EventSource.CLOSED) return;
        timer = setTimeout(open, wait * (.5 + Math.random()));
        wait = Math.min(wait * 2, 60000);
      });
      for (const name in handlers) own.addEventListener(name, event => own === source && handlers[name](event));
    };
    const look = () => document.hidden ? resumes() && close() : source || open();
    const { signal } = gone;
    document.addEventListener('visibilitychange', look, { signal });
    addEventListener('pagehide', close, { signal });
    addEventListener('pageshow', event => event.persisted && look(), { signal });
    streams.add(again);
    look();
    return () => { gone.abort(); close(); streams.delete(again); };
  }

  // Asks for JSON, lights up the worker that answered, and throws what the answer says is wrong.
  async function ask(method, path, body) {
    const headers = { accept: 'application/json', ...body && { 'content-type': 'application/json' } };
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    } catch { throw Error('the fleet is not to be reached'); }
    light(response.headers.get('x-worker-id'));
    const answer = await response.json().catch(() => ({})), { status } = response;
    if (!response.ok) throw Object.assign(Error(answer.detail || answer.title || `status ${status}`), { status });
    return answer;
  }

  // The button rests, and what came of it is said beside it.
  async function act(form, work) {
    const button = $('button', form), told = $('.told', form.parentNode);
    button.disabled = true;
    try { told.textContent = await work() || ''; told.classList.remove('wrong'); }
    catch (error) { told.textContent = error.message; told.classList.add('wrong'); }
    button.disabled = false;
  }

  // The map has this machine's lanes only.
  function light(pid, host) {
    const lane = pid && $(`.lane[data-pid="${CSS.escape(pid)}"]`);
    if (!lane || host && host !== lane.parentNode.dataset.host) return;
    lane.classList.remove('lit');
    void lane.offsetWidth;
    lane.classList.add('lit');
  }

  function course(lanes) {
    const draw = (lane, slot, most) => {
      const at = Math.min(100, Math.floor(slot.requests * 100 / most)), back = Math.floor(at * BOAT / 100);
      lane.dataset.slot = slot.slot;
      lane.dataset.pid = slot.pid || '';
      lane.classList.toggle('absent', slot.state !== 'ready');
      $('.boat', lane).setAttribute('x', `${at}%`);
      $('.boat use', lane).setAttribute('x', -back);
      $('.boat use + use', lane)?.setAttribute('x', 100 - back);
      $('.seat', lane).textContent = slot.slot;
      $('.pid', lane).textContent = !slot.pid ? 'no crew' : slot.state === 'ready' ? slot.pid : `${slot.pid} ${slot.state}`;
      $('.count', lane).textContent = grouped(slot.requests);
    };
    const blank = lanes.firstElementChild.cloneNode(true);
    blank.classList.remove('yours');
    blank.removeAttribute('aria-current');
    blank.querySelectorAll('.served-you, use + use').forEach(part => part.remove());
    // An event may be older than the page or than one before it: a count never goes back. What Redis does not say now
    // is not shown as if it did.
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
    // It says something every 15 seconds.
    let silent;
    const hears = () => {
      clearTimeout(silent);
      silent = setTimeout(() => { renew(); hears(); }, 40000);
    };
    listen(() => '/live', { open: hears, message: event => { hears(); show(JSON.parse(event.data)); } });
    light(lanes.querySelector('.yours')?.dataset.pid);
  }

  function megaphone(form) {
    const log = $('.log'), said = kept('news');
    let heard;
    const open = new Promise(resolve => heard = resolve);
    const add = (text, id) => {
      const line = document.createElement('li'), words = document.createElement('span');
      words.textContent = text;
      line.append(words);
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
    said.forEach(([text, id]) => add(text, id));
    // Where it goes on, also if it has heard nothing yet.
    let from = kept('from')[0] ?? said.at(-1)?.[1];
    const goOn = id => keep('from', [from = id]);
    const last = () => from ? `&last_event_id=${from}` : '';
    listen(() => `/events?topic=news${last()}`, {
      open: heard,
      start: ({ data }) => goOn(data),
      gap: () => add('Some messages of the meantime are forgotten.'),
      message: ({ data, lastEventId }) => {
        add(data, lastEventId);
        goOn(lastEventId);
        keep('news', (said.push([data, lastEventId]), said.splice(0, said.length - SHOWN), said));
      },
    }, () => from);
    form.addEventListener('submit', event => {
      event.preventDefault();
      act(form, async () => {
        // A client that publishes before it subscribes would not hear its own message.
        await Promise.race([open, new Promise(resolve => setTimeout(resolve, 2000))]);
        await ask('POST', '/broadcast', { topic: 'news', message: form.elements.message.value });
        form.elements.message.value = '';
      });
    });
  }

  // Follows a task on its card until it ends or the card goes. One card has a stream, and the others ask now and then:
  // a page must not use up the browser's connections, or no button works.
  const leave = new WeakMap();
  let streamed;
  function follow(card) {
    const path = `/tasks/${card.dataset.task}`, cancel = $('.cancel', card);
    let state, timer, close, over = false;
    const stop = () => {
      over = true;
      clearTimeout(timer);
      close?.();
      if (streamed === card) streamed = undefined;
    };
    leave.set(card, stop);
    const go = async () => {
      if (!streamed) {
        streamed = card;
        close = listen(() => `${path}/events`, { message: event => show(JSON.parse(event.data)) });
        return;
      }
      if (!document.hidden) await ask('GET', path).then(show, ({ status }) => status === 404 && stop());
      if (!over) timer = setTimeout(go, 1500);
    };
    const show = task => {
      const { percent, worker, attempts, result, error } = task;
      $('progress', card).value = percent;
      $('.percent', card).textContent = `${percent} %`;
      if (state !== task.state) {
        card.dataset.state = state = task.state;
        const where = worker && state !== 'queued' ? ` in worker ${worker}` : '';
        $('.state', card).textContent = state + where + (attempts > 1 ? `, attempt ${attempts}` : '');
        if (state === 'running') light(...worker.split(':').reverse());
      }
      cancel.hidden = ENDS.includes(state);
      if (!cancel.hidden) return;
      const live = !over;
      stop();
      $('.outcome', card).textContent = error || summary(result);
      // A page of its own has the whole result, too.
      if (live && card.parentNode.matches('.alone')) location.reload();
    };
    if (ENDS.includes(card.dataset.state)) stop(); else go();
    cancel.addEventListener('submit', event => {
      event.preventDefault();
      act(cancel, () => ask('DELETE', path).then(() => ''));
    });
    return show;
  }

  function summary(result) {
    const { value, digits, count } = result ?? {};
    if (value) return value.length < 60 ? value : `${value.slice(0, 16)}…${value.slice(-16)} (${grouped(digits)} digits)`;
    return count == null ? '' : `${grouped(count)} primes`;
  }

  function trial(form) {
    const cards = $('.cards'), list = kept('tasks');
    const add = (id, title) => {
      const card = $('#card').content.firstElementChild.cloneNode(true), link = $('h3 a', card);
      card.dataset.task = id;
      link.href = `/tasks/${id}`;
      link.textContent = title;
      $('.cancel', card).action = `/tasks/${id}/cancel`;
      cards.prepend(card);
      while (cards.children.length > CARDS) {
        leave.get(cards.lastChild)?.();
        cards.lastChild.remove();
      }
      return card;
    };
    const again = async () => {
      for (const [id, title] of [...list]) {
        const task = await ask('GET', `/tasks/${id}`).catch(() => undefined);
        if (!task) continue;
        const card = add(id, title);
        card.dataset.state = task.state;
        follow(card)(task);
      }
    };
    again();
    form.addEventListener('submit', event => {
      event.preventDefault();
      act(form, async () => {
        const { kind, n } = form.elements;
        const { id } = await ask('POST', '/tasks', { kind: kind.value, n: +n.value });
        const title = `${kind.selectedOptions[0].dataset.title} ${grouped(n.value)}`;
        keep('tasks', (list.push([id, title]), list.splice(0, list.length - CARDS), list));
        follow(add(id, title));
      });
    });
  }

  const on = (selector, run) => document.querySelectorAll(selector).forEach(run);
  on('.lanes', course);
  on('#megaphone', megaphone);
  on('#trial', trial);
  on('.card[data-task]', follow);
})();
