//! Integration tests: one binary, one module per subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so by panicking, also from the harness"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "no test forks its own process: a thread's random numbers are its own"
)]

mod activation; // sockets that a service manager opened
mod addresses; // both families, several operators' addresses, and their names
mod autoscale; // the load decides how many workers there are
mod bad_lines; // Redis over bad lines
mod balance; // connections are spread evenly over the workers
mod batch_faults; // batches in the middle of every fault
mod batches; // what the requests of a turn want of Redis is one call
mod batches_cluster; // what they want of one slot of a cluster is one call
mod begin_batch; // many begins in one call
mod broadcast_cluster; // over a cluster
mod broadcast_faults; // whatever happens to Redis and to connections
mod broadcast_fleet; // as clients and operators of a fleet see them
mod broadcast_hub; // messages to everybody, and who comes back
mod broadcast_topics; // a worker hears the topics of its clients, and no others
mod browser; // the page in a real browser
mod browser_live; // what moves on the page, in real browsers
mod circles; // no files that name each other
mod cleaner; // what a cleaner of temporary files removes
mod clocks; // a machine whose clock is wrong
mod clocks_step; // Redis's clock steps, both ways
mod commit_batch; // what the requests of a turn commit is one call
mod config_errors; // mistakes are one sentence and an exit code
mod control; // the control socket, no matter what is at its other end
mod control_fleet; // the control socket of a real fleet
mod control_verbs; // what operators type, against a scripted fleet
mod cookies; // only our own cookies count
mod cost; // what a request costs in Redis
mod counters_batched; // batched counters: nothing lost, nothing twice
mod counters_kinds; // bounded and unique counters
mod counters_once; // requests that are carried out once
mod crash; // what a crash costs, and what not
mod crossed; // two things at once, each of which goes well alone
mod crowd_harness; // the clients of the load find each kind of wrong answer
mod dashboard; // the operators' page in a real browser
mod dashboard_http; // who may do what there, over HTTP
mod demo; // what the shipped application lets strangers do
mod deploy; // manifests and compose agree with each other and with the settings
mod docs; // links, anchors and words of the documents
mod early_answers; // answers before the request was read, and who sends for ever
mod environment; // variables that are mistakes, no text, or injected
mod exact; // counts are exact
mod faults; // every fault of Redis is a defined state
mod fleet_beats; // heartbeats in Redis itself
mod fleet_machines; // several supervisors on one Redis
mod fleet_nginx; // the upstream of all hosts that live
mod fred_claims; // what was said of the client library
mod fuzz; // what strangers may send, mutated
mod gate; // what a request may cost
mod gcra; // rates are decided alike on both sides
mod half_closed; // clients that end their side and wait, and clients that are gone
mod hands; // folders and files in another user's hands
mod heal; // what Redis forgets is put back
mod healing; // hung workers are found and replaced
mod heirs; // what was made before the fleet began
mod http2; // HTTP/2 without TLS
mod http_bounds; // what a client may send, and how slowly
mod identity; // who a client is, by the tables
mod inherited; // what a parent leaves to the fleet
mod kernels; // kernels that are too old, profiles that forbid
mod layers; // the house rules: floors, walls, sizes
mod leftovers; // a killed fleet and the next one
mod limits; // rate limits hold over all workers
mod limits_desk; // what workers decide themselves, and what they do without Redis
mod limits_http; // limits as applications and clients meet them
mod limits_leased; // limits that workers draw in advance by default, and what no client loses by it
mod limits_strangers; // what strangers can fill, and how they would walk around a limit
mod live_faults; // what may happen to streams without costing a message
mod live_harness; // the crowd finds out who sins
mod live_hostile; // frames that no WebSocket may send, and clients that are no good
mod live_load; // many clients at once
mod live_nginx; // streams and sockets behind the shipped nginx
mod live_sse; // streams of events as their clients meet them
mod live_ws; // WebSockets as their clients meet them
mod log_stuck; // a log that nothing takes lines from
mod logs; // the log in a file, its rotation, and the figures in it
mod memory; // what one more worker costs
mod metrics; // what operators read
mod migrations_cli; // `regatta migrate`
mod migrations_fence; // who lost the lock writes nothing more
mod migrations_rolling; // two releases on one Redis
mod migrations_walk; // long walks over keys
mod news_rights; // a user who may not listen, or not tell
mod news_space; // a fleet hears its own news, and believes no others
mod nginx; // the shipped proxy configuration
mod not_redis; // what answers where Redis should
mod odd; // odd requests and their right answers
mod once_names; // the names of a request that is carried out once, in Redis
mod once_who; // and who finds it, and who does not
mod oracle; // commits against a sequential model
mod overload; // more requests than a worker can answer
mod page_live; // the page's stream
mod page_tasks; // the application's tasks over HTTP
mod passed; // connections on their way from one worker to another
mod paths; // files that are moved, emptied, and behind links that are switched
mod plain; // no server-side code allowed
mod plain_limits; // and what that means for limits
mod proxy; // who a client is
mod recycle; // workers are renewed by requests, age and memory
mod redis_away; // Redis away is a defined state
mod rolling; // two releases at once, and one after the other
mod rollout; // verdicts of reloads, restarts and scaling, and roll-backs
mod saturation; // more clients than it can serve at once
mod seats; // seats outlive workers, pauses and bad neighbours
mod secrecy; // nothing to log in with
mod seeing; // status and top
mod serve; // the main job
mod service; // what systemd is told
mod session_account; // logins, users' sessions, lifetimes, encryption
mod session_app; // the application's pages for it
mod session_cookies; // which cookie counts
mod session_index; // a user's sessions, however many are gone
mod session_merge; // sessions under concurrency
mod session_tickets; // strangers store nothing
mod short_absence; // a short absence of Redis is invisible
mod slow_clients; // clients that take their time, or too many places
mod state_begin;
mod state_commit; // the one round trip, and what it leaves in Redis
mod state_faults; // the client library under faults
mod state_migrations; // ledger, checksum, lock
mod state_session; // sessions merge, end, and stay ended
mod state_stock; // the control: tower-sessions' own store
mod steering; // which worker a client meets
mod stop; // nothing begun is dropped
mod support; // the harness
mod task_fence; // what is said too late of a task, and to a full server
mod task_fleet; // tasks over real workers that are killed, leave, hang and come back
mod task_model; // any order of steps of a task, against a model
mod task_room; // the application's face of tasks
mod task_steps; // each step of a task, in both forms of the code
mod task_wakes; // a task wakes one worker
mod topology_access; // who may do what in Redis, and how a password changes
mod topology_cluster; // a real cluster
mod topology_sentinel; // a primary that changes
mod topology_tls; // encryption to Redis
mod toxics; // the fault proxy itself
mod undo; // what is taken back is taken back once
mod upgrade; // another program in the same process, and back
mod vocabulary; // the words of the glossary
mod watch; // what changes on disk is followed
mod zero_loss; // what an operator may do to a fleet without costing a visitor anything
