//! The spawner: the one thread that starts children.
//!
//! PDEATHSIG follows the thread that made the child, not its process. This thread lives as long as the process does, so a child
//! dies with the process and not before.

use std::{io, sync::Mutex, thread};

use tokio::sync::{mpsc, oneshot};

use super::{
    cgroup::VmCgroup,
    spawn::{Command, Nursery, SpawnError, Spawned},
};

/// A process and the control group that it is in.
type Made = (Spawned, Option<VmCgroup>);

/// Jobs that may wait. A spawn takes under a millisecond; more than this many waiting means that the host is out of processes.
const QUEUED_JOBS: usize = 64;

struct Job {
    command: Command,
    reply: oneshot::Sender<Result<Made, SpawnError>>,
}

static SPAWNER: Mutex<Option<mpsc::Sender<Job>>> = Mutex::new(None);

/// Starts `command` from the spawner's thread.
pub(super) async fn spawn(command: Command) -> Result<Made, SpawnError> {
    let (reply, answer) = oneshot::channel();
    let queue = queue()?;
    let gone = || SpawnError::from(io::Error::other("the spawner thread has ended"));
    queue.send(Job { command, reply }).await.map_err(|_job| gone())?;
    answer.await.map_err(|_closed| gone())?
}

fn queue() -> io::Result<mpsc::Sender<Job>> {
    let mut spawner = SPAWNER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(queue) = spawner.as_ref().filter(|queue| !queue.is_closed()) {
        return Ok(queue.clone());
    }
    let (queue, jobs) = mpsc::channel(QUEUED_JOBS);
    let nursery = Nursery::new()?;
    thread::Builder::new().name("spawner".into()).spawn(move || work(nursery, jobs))?;
    *spawner = Some(queue.clone());
    Ok(queue)
}

fn work(mut nursery: Nursery, mut jobs: mpsc::Receiver<Job>) {
    while let Some(Job { command, reply }) = jobs.blocking_recv() {
        // A child that nobody waits for any more comes back and is killed by its drop.
        let _ = reply.send(nursery.spawn(command));
    }
}
