//! What every promise is tested with: a real fleet, a real Redis, a plain client, and deadlines.
//!
//! | for | take |
//! |---|---|
//! | a Redis that is only needed | `TestRedis::shared()`: one server for all; `TestFleetBuilder::on` gives each fleet a prefix |
//! | a Redis that is stopped, counted or looked into | `TestRedis::start()`; `TestRedisCluster`, `TestSentinelSetup`, `TestRedisTcp` for other kinds |
//! | a worker's connection without a fleet | `redis::connect`, `cluster_client::connect`; `limit_workers`, `task_steps` for limits and tasks |
//! | a fleet | `TestFleetBuilder::on(&redis).workers(4).set(NAME, VALUE).start()`: waits until it serves, stops with the value, shows its log where the test fails |
//! | a fleet that fails on request, with an operator | `faulty_fleet::Scene`; `operate` for what operators and bad days do |
//! | a fleet in traffic, with its books | `traffic::Scene` |
//! | a bad line to Redis | `FaultProxy` between, `TestFleetBuilder::through` |
//! | requests | `client::once`, `client::Connection` (one connection, never repeated), `CookieClient` (keeps cookies) |
//! | a load whose every loss is counted | `LoadGenerator::start(address, MIX)` … `.finish()`; `ClientSwarm` for thousands; `ParallelClients` for any closure |
//! | a client at a Unix socket, or one that begins with a header | `stand_in::unix`, `stand_in::begun`: an address for any of them |
//! | streams and what they deliver | `DeliveryScenario`, `stream::Stream`, `events` |
//! | pages in a browser | `Browser`, `live_page`, `dashboard` |
//! | waiting | `wait::until`, `redis::eventually`: with a deadline, saying for what; `wait::let_pass` where time is the subject |
//!
//! Tests build on these modules, and on no other test (`architecture/tiers.rs`).

pub(crate) mod broadcasts;
pub(crate) mod browser;
pub(crate) mod burners;
pub(crate) mod client;
#[allow(dead_code, reason = "the benchmark of overload uses all of it")]
pub(crate) mod client_swarm;
pub(crate) mod clock;
pub(crate) mod cluster_client;
pub(crate) mod dashboard;
pub(crate) mod delivery_scenario;
pub(crate) mod events;
pub(crate) mod exposition;
pub(crate) mod fault_proxy;
pub(crate) mod faulty_fleet;
pub(crate) mod fleet;
pub(crate) mod kept_connections;
pub(crate) mod limit_workers;
pub(crate) mod live_page;
pub(crate) mod load_generator;
pub(crate) mod nginx;
pub(crate) mod operate;
pub(crate) mod parallel_clients;
pub(crate) mod process;
pub(crate) mod property;
pub(crate) mod redis;
pub(crate) mod redis_cluster;
pub(crate) mod redis_sentinel;
pub(crate) mod redis_tcp;
pub(crate) mod repository;
pub(crate) mod saturation;
pub(crate) mod scripted_supervisor;
pub(crate) mod server;
pub(crate) mod service_manager;
pub(crate) mod shop;
pub(crate) mod soak;
pub(crate) mod sockets;
pub(crate) mod stand_in;
pub(crate) mod stream;
pub(crate) mod task_fleet;
pub(crate) mod task_steps;
pub(crate) mod terminal;
pub(crate) mod tls;
pub(crate) mod traffic;
pub(crate) mod wait;
