//! A fleet that fails on request: its tests want workers that do not boot, panic, hang, leak or leave orphans.
//!
//! `FAULTY_FILE` names a file that lists the slots whose workers panic while they build their application, or says `all`;
//! it is read anew by each worker, so that a fault can be mended while the fleet runs. `late` has workers die a second
//! after they began, `never` has them never begin; `error` has the application return one, `hang` wait for ever, `bell` has
//! its background work panic; `crew` has hooks panic and overstay. `mast` gives it two checks: at `gone` one fails, at
//! `sways` it hangs, at `snaps` it panics, at `torn` the other one, of its health, fails; `storm`, which is read at each
//! check, fails the first one in every worker. `FAULTY_HOOK` has the hook after the fork return an `error`, `panic` or
//! `hang`. `FAULTY_THREAD` makes it start a thread before the fleet, which a program that forks must not. Its tasks sleep,
//! or end in every way there is.

use std::convert::Infallible;
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Path, Request};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use futures_util::stream;
use http_body::Frame;
use hyper_util::rt::TokioIo;
use regatta::counter::Counters;
use regatta::session::{AuthSession, PageView, Session};
use regatta::task::{Task, TaskContext, TaskFailure};
use regatta::ws::{WebSocket, WebSocketUpgrade};
use regatta::{
    App, ClientIp, Context as AppContext, Error, Fleet, FleetHandle, Idempotency, OnDrain, RequestTimeout,
    Worker,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Interval;

fn main() -> ExitCode {
    if std::env::var_os("FAULTY_THREAD").is_some() {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
    }
    let file = std::env::var("FAULTY_FILE").ok();
    let hook = std::env::var("FAULTY_HOOK").unwrap_or_default();
    Fleet::new(move |cx: AppContext| {
        let failing = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        app(cx, failing, file.clone())
    })
    .after_fork(move |_| cast_off(&hook))
    .run()
}

/// The hook after the fork, which fails as it is told.
fn cast_off(failing: &str) -> Result<(), &'static str> {
    match failing {
        "error" => return Err("the anchor is stuck"),
        "panic" => panic!("the anchor is lost"),
        "hang" => std::thread::sleep(Duration::from_secs(600)),
        _ => {}
    }
    Ok(())
}

async fn app(cx: AppContext, failing: String, file: Option<String>) -> Result<App, NotBuilt> {
    let fleet = cx.fleet();
    let slot = fleet.worker().slot().to_string();
    // A panic of the future, after it has waited.
    tokio::task::yield_now().await;
    assert!(!failing.split_whitespace().any(|word| word == "all" || word == slot), "the boat has a hole");
    linger(&failing);
    if failing.contains("error") {
        return Err(NotBuilt(std::io::Error::other("the harbour is closed")));
    }
    if failing.contains("hang") {
        std::future::pending::<()>().await;
    }
    let app = register(App::new(routes().with_state(fleet.clone())));
    let app = app.operator_routes(Router::new().route("/ticks/{on_drain}/{count}", get(ticks)));
    let app = if failing.contains("crew") { mutinous(app) } else { app };
    let app = if failing.contains("mast") { check(app, &failing, file) } else { app };
    Ok(match failing.contains("bell") {
        true => app.background("bell", |_| async { panic!("the bell has fallen") }),
        false => app,
    })
}

/// Checks that do as the application was told when it was built, or in a storm as it is told now.
fn check(app: App, failing: &str, file: Option<String>) -> App {
    let torn = failing.contains("torn");
    let failing = failing.to_owned();
    app.readiness_check("mast", move || {
        let now = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let failing = failing.clone();
        async move {
            assert!(!failing.contains("snaps"), "it has snapped");
            if failing.contains("sways") {
                std::future::pending::<()>().await;
            }
            match failing.contains("gone") || now.contains("storm") {
                true => Err("it is gone"),
                false => Ok(()),
            }
        }
    })
    .health_check("sail", move || async move { if torn { Err("it is torn") } else { Ok(()) } })
}

/// Hooks of every kind, of which one panics or never ends.
fn mutinous(app: App) -> App {
    let for_ever = std::future::pending::<()>;
    app.on_ready(async { panic!("no wind") })
        .on_drain(for_ever())
        .on_drain(async { tracing::info!("hook: drain") })
        .on_exit(async { tracing::info!("hook: exit, never begun") })
        .on_exit(for_ever())
        .on_exit(async { tracing::info!("hook: exit, second") })
        .on_exit(async { panic!("no harbour") })
}

/// An error with a source.
#[derive(Debug, thiserror::Error)]
#[error("cannot leave")]
struct NotBuilt(#[source] std::io::Error);

fn routes() -> Router<FleetHandle> {
    let held = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&held);
    Router::new()
        .route("/hello", get(hello))
        .route("/slow/{millis}", get(move |millis| slow(millis, Arc::clone(&counted))))
        .route("/hasty/{millis}", get(nap).layer(RequestTimeout::new(Duration::from_millis(300))))
        .route("/patient/{millis}", get(nap).layer(RequestTimeout::new(Duration::from_secs(60))))
        .route("/who", get(who))
        .route("/client", get(async |ClientIp(address): ClientIp| address.to_string()))
        .route("/held", get(move || async move { held.load(Ordering::Relaxed).to_string() }))
        .route("/panic", get(overboard).post(overboard))
        .route("/orphan", get(orphan))
        .route("/later/{millis}", post(later))
        .route("/block/{millis}", get(block))
        .route("/talk/{on_drain}", any(talk))
        .route("/ticks/{on_drain}/{count}", get(ticks))
        .route("/silence", get(silence))
        .route("/spin/{millis}", get(spin))
        .route("/leak/{mib}", get(leak))
        .merge(long_ones())
}

async fn hello(worker: Worker) -> String {
    format!("Handled by worker {}\n", worker.pid())
}

/// Answers after this many milliseconds.
async fn slow(Path(millis): Path<u64>, held: Arc<AtomicUsize>) -> &'static str {
    held.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(millis)).await;
    held.fetch_sub(1, Ordering::Relaxed);
    "slow\n"
}

/// Answers after this many milliseconds.
async fn nap(Path(millis): Path<u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    "rested\n"
}

/// Counts itself, and answers after a while with how often it was.
async fn once(counters: Counters, Path(millis): Path<u64>) -> Result<String, Error> {
    let times = counters.add("once", 1).await?;
    tokio::time::sleep(Duration::from_millis(millis)).await;
    Ok(times.to_string())
}

/// The same, and does something with the session or says something of its response meanwhile.
async fn once_and(
    key: Option<Idempotency>,
    mut account: AuthSession,
    session: Session,
    counters: Counters,
    Path((millis, what)): Path<(u64, String)>,
) -> Result<(StatusCode, String), Error> {
    let times = once(counters, Path(millis)).await?;
    let (what, more) = what.split_once('-').unwrap_or((&what, ""));
    let mut status = StatusCode::OK;
    match what {
        "login" => account.login(more).await?,
        "logout" => account.logout().await?,
        "rotate" => account.cycle_id().await?,
        "note" => session.insert("noted", more).await?,
        "remember" => account.remember(Duration::from_secs(777), Duration::from_secs(777)).await?,
        _ => status = what.parse().unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
    match (key, more) {
        (Some(key), "keep") => key.store(),
        (Some(key), "release") => key.release(),
        _ => {}
    }
    Ok((status, times))
}

/// Counts itself and a view.
async fn viewed(visit: PageView, counters: Counters) -> Result<String, Error> {
    Ok(format!("{} {}", counters.add("once", 1).await?, visit.count()))
}

/// The name of the user who is logged in.
async fn who(account: AuthSession) -> String {
    account.user_id().unwrap_or("nobody").to_owned()
}

async fn overboard() -> &'static str {
    panic!("man overboard")
}

/// Leaves work behind that takes this long.
async fn later(fleet: FleetHandle, Path(millis): Path<u64>) -> &'static str {
    fleet.spawn(async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        tracing::info!("what was left for later is done");
    });
    "later\n"
}

/// Leaves a grandchild behind whose parent is gone at once; answers with its pid.
async fn orphan() -> String {
    let shell = Command::new("sh").args(["-c", "sleep 0.2 >/dev/null 2>&1 & echo $!"]).output();
    shell.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
}

/// What load is made of besides small answers: large ones, ones in pieces, posted bodies, held connections.
fn long_ones() -> Router<FleetHandle> {
    Router::new()
        .route("/bytes/{count}", get(|Path(count): Path<usize>| async move { vec![b'x'; count] }))
        .route("/drip/{pieces}", get(drip))
        .route("/counters/{name}", post(count))
        .route("/batched/{name}", post(batch))
        .route("/echo", get(echo))
        .route("/fields/{name}/{value}", post(keep))
        .route("/fields/{name}", get(kept))
        .route("/once/{millis}", post(once))
        .route("/once/{millis}/{what}", post(once_and))
        .route("/viewed", post(viewed))
        .route("/keyed", post(async |key: Idempotency| key.key().to_owned()))
}

/// Time between two pieces of a drip.
const DRIP: Duration = Duration::from_millis(25);

/// An answer in this many pieces.
async fn drip(Path(pieces): Path<u32>) -> Body {
    Body::new(Drip { left: pieces, interval: tokio::time::interval(DRIP) })
}

struct Drip {
    left: u32,
    interval: Interval,
}

impl http_body::Body for Drip {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        ready!(self.interval.poll_tick(context));
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"drip\n")))))
    }
}

/// Adds 1 to a counter once the whole body has come; answers with the sum.
async fn count(counters: Counters, Path(name): Path<String>, _body: Bytes) -> Result<String, Error> {
    Ok(counters.add(&name, 1).await?.to_string())
}

/// Adds 1 to a batched counter of any name.
async fn batch(counters: Counters, Path(name): Path<String>) -> Result<(), Error> {
    Ok(counters.batched(&name).add(1).await?)
}

/// Keeps a value in the visitor's session.
async fn keep(session: Session, Path((name, value)): Path<(String, String)>) -> Result<(), StatusCode> {
    session.insert(&name, value).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}

/// A value of the visitor's session.
async fn kept(session: Session, Path(name): Path<String>) -> Result<String, StatusCode> {
    let value = session.get(&name).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    Ok(value.unwrap_or_default())
}

/// Leaves HTTP, as a WebSocket does, and gives back what it is sent until the client closes.
async fn echo(request: Request) -> impl IntoResponse {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = [0; 256];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    });
    (StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, "websocket")])
}

/// Gives back each message over a WebSocket, or takes none; goes on while its worker drains if it is told to.
async fn talk(upgrade: WebSocketUpgrade, Path(on_drain): Path<String>) -> Response {
    match on_drain.as_str() {
        "busy" => upgrade.on_upgrade(keep_busy),
        _ => upgrade.on_drain(policy(&on_drain)).on_upgrade(give_back),
    }
}

/// Takes no message, as a handler that waits for something else.
async fn keep_busy(socket: WebSocket) {
    std::future::pending::<()>().await;
    drop(socket);
}

async fn give_back(mut socket: WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if socket.send(message).await.is_err() {
            return;
        }
    }
}

/// So many events, one each 20 ms; they go on while the worker drains if they are told to.
async fn ticks(Path((on_drain, count)): Path<(String, u64)>) -> impl IntoResponse {
    let events = stream::unfold(0, move |n| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        (n < count).then(|| (Ok::<_, Infallible>(Event::default().id(n.to_string()).data("tick")), n + 1))
    });
    (Extension(policy(&on_drain)), Sse::new(events))
}

/// A stream that never says anything.
async fn silence() -> impl IntoResponse {
    Sse::new(stream::pending::<Result<Event, Infallible>>())
}

fn policy(on_drain: &str) -> OnDrain {
    if on_drain == "finish" { OnDrain::Finish } else { OnDrain::Close }
}

/// Blocks the event loop, as a call to a slow library would.
async fn block(Path(millis): Path<u64>) -> &'static str {
    std::thread::sleep(Duration::from_millis(millis));
    "blocked\n"
}

/// Keeps the event loop computing.
async fn spin(Path(millis): Path<u64>) -> &'static str {
    let end = Instant::now() + Duration::from_millis(millis);
    while Instant::now() < end {
        std::hint::spin_loop();
    }
    "spun\n"
}

/// Takes memory and never gives it back.
async fn leak(Path(mib): Path<usize>) -> &'static str {
    // Not zero, so that every page is really written.
    Vec::leak(vec![1_u8; mib << 20]);
    "leaked\n"
}

/// The faults that take time.
fn linger(failing: &str) {
    if failing.contains("late") {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            // As the kernel ends one for want of memory.
            let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
        });
    }
    if failing.contains("never") {
        std::thread::sleep(Duration::from_secs(600));
    }
}

/// Sleeps for so many milliseconds, and reports its progress.
#[derive(Serialize, Deserialize)]
struct Nap(u64);

/// Sleeps for so many milliseconds and hears nothing.
#[derive(Serialize, Deserialize)]
struct Deaf(u64);

/// Ends as it is told.
#[derive(Serialize, Deserialize)]
struct Mishap(String);

/// Waits for so many milliseconds on the event loop.
#[derive(Serialize, Deserialize)]
struct Doze(u64);

impl Task for Nap {
    const NAME: &'static str = "nap";
    type Output = u32;
}

impl Task for Deaf {
    const NAME: &'static str = "deaf";
    type Output = u64;
}

impl Task for Mishap {
    const NAME: &'static str = "mishap";
    type Output = String;
}

impl Task for Doze {
    const NAME: &'static str = "doze";
    type Output = u32;
}

fn register(app: App) -> App {
    app.blocking_task(|Nap(millis): Nap, cx: TaskContext| sleep_in_steps(millis, &cx))
        .blocking_task(|Deaf(millis): Deaf, _: TaskContext| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok::<_, String>(millis)
        })
        .blocking_task(|Mishap(how): Mishap, cx: TaskContext| mishap(&how, &cx))
        .task(doze)
}

fn sleep_in_steps(millis: u64, cx: &TaskContext) -> Result<u32, &'static str> {
    for step in 0..100 {
        std::thread::sleep(Duration::from_micros(millis * 10));
        cx.percent(step + 1);
        if cx.is_cancelled() {
            return Err("woken");
        }
    }
    Ok(std::process::id())
}

fn mishap(how: &str, cx: &TaskContext) -> Result<String, TaskFailure> {
    match how {
        "abort" => std::process::abort(),
        "overflow" => Ok(deep(u64::MAX).to_string()),
        "panic" => panic!("man overboard"),
        "again" => Err(TaskFailure::retry(format!("attempt {}", cx.attempt()))),
        "once" if cx.attempt() == 1 => Err(TaskFailure::retry("the first one")),
        "once" => Ok("the second one".to_owned()),
        other => Err(other.into()),
    }
}

async fn doze(Doze(millis): Doze, cx: TaskContext) -> Result<u32, &'static str> {
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(millis)) => Ok(std::process::id()),
        () = cx.cancelled() => Err("woken"),
    }
}

/// Needs more stack than there is.
fn deep(left: u64) -> u64 {
    let frame = std::hint::black_box([left; 128]);
    if left == 0 { frame[0] } else { deep(left - 1) + frame[1] }
}
