//! What is seldom or lasts: storms of signals, too few processors, leaks over many rollouts, and how long things take.

mod figures;
mod starved;
mod steady;
mod storm;
