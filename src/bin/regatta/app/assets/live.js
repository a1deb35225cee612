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

  // A browser has six connections to a host for all its tabs: a page that nobody looks at gives its own back,
  // except for a stream that would not know where to go on.
  function listen(address, handlers, resumes = () => true) {
    const gone = new AbortController();
    let source, timer, wait = 1000;
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
    look();
    return () => { gone.abort(); close(); };
  }

  // Asks for JSON, lights up whoever answered, and throws what the answer says is wrong.
  async function ask(method, path, body) {
    const headers = { accept: 'application/json', ...body && { 'content-type': 'application/json' } };
    let response;
    try {
      response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    } catch { throw Error('the fleet is not to be reached'); }
    light(response.headers.get('x-worker-id'));
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw Error(answer.detail || answer.title || `status ${response.status}`);
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
    const show = ({ total, here, slots }) => {
      if (total != null) $('#total').textContent = grouped(total);
      if (here != null) {
        $('#here').textContent = grouped(Math.max(here, 1));
        $('#here').parentNode.hidden = false;
      }
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
    listen(() => '/live', { message: event => show(JSON.parse(event.data)) });
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
    const last = () => said.length ? `&last_event_id=${said.at(-1)[1]}` : '';
    listen(() => `/events?topic=news${last()}`, {
      open: heard,
      gap: () => add('Some messages of the meantime are forgotten.'),
      message: ({ data, lastEventId }) => {
        add(data, lastEventId);
        keep('news', (said.push([data, lastEventId]), said.splice(0, said.length - SHOWN), said));
      },
    }, () => said.length > 0);
    form.addEventListener('submit', event => {
      event.preventDefault();
      act(form, async () => {
        // Whoever calls before he listens would not hear himself.
        await Promise.race([open, new Promise(resolve => setTimeout(resolve, 2000))]);
        await ask('POST', '/broadcast', { topic: 'news', message: form.elements.message.value });
        form.elements.message.value = '';
      });
    });
  }

  // Follows a task on its card until it ends.
  function follow(card) {
    const path = `/tasks/${card.dataset.task}`, cancel = $('.cancel', card);
    let state;
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
      stop?.();
      $('.outcome', card).textContent = error || summary(result);
      // A page of its own has the whole result, too.
      if (stop && card.parentNode.matches('.alone')) location.reload();
    };
    const stop = ENDS.includes(card.dataset.state) ? undefined
      : listen(() => `${path}/events`, { message: event => show(JSON.parse(event.data)) });
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
      while (cards.children.length > CARDS) cards.lastChild.remove();
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
