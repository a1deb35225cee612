//! What an operator, or a bad day, may do to a fleet without costing a visitor anything.
//!
//! Every scenario runs under a load of clients of all kinds and ends with the same books: not one request failed, the
//! fleet's totals are what the clients counted, and the posted counter is exact. `REGATTA_SOAK` makes them long.

mod held;
mod idle;
mod loss;
mod phases;
mod proxy;
mod recycle;
mod reload;
mod scale;
mod unix_socket;
mod upgrade;
