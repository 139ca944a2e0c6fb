//! The remote cache against real stores, through its public API: a server that speaks S3, with credentials, and a directory.
//!
//! Between the cache and the server stands a proxy that cuts, stalls and slows connections as a test tells it. What happens to objects
//! happens to them where the store keeps them. Nothing leaves the machine.
#![expect(clippy::unwrap_used, reason = "a panic is how a test's fixture fails")]

mod outages;
mod proxy;
mod refusals;
mod round_trip;
mod server;
mod shelf;
mod uploads;
