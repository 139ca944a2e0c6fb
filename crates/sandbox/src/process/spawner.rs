//! The spawner: the one thread that starts children.
//!
//! PDEATHSIG follows the thread that made the child, not its process. This thread lives as long as the process does, so a child
//! dies with the process and not before. A process that was forked does not have the thread and makes one of its own; what it has
//! inherited of the other it leaves as it is, lock and all, because nobody there gives that lock back.
#![expect(unsafe_code, reason = "reading a leaked value through an atomic pointer")]

use std::{
    io, ptr,
    sync::{
        Mutex,
        atomic::{AtomicPtr, Ordering},
    },
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    cgroup::VmCgroup,
    spawn::{Command, Nursery, SpawnError, Spawned},
};
use crate::maker::Maker;

/// A process and the control group that it is in.
type Made = (Spawned, Option<VmCgroup>);

/// Jobs that may wait. A spawn takes under a millisecond; more than this many waiting means that the host is out of processes.
const QUEUED_JOBS: usize = 64;

struct Job {
    command: Command,
    reply: oneshot::Sender<Result<Made, SpawnError>>,
}

/// The way to the thread of one process.
struct Spawner {
    maker: Maker,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
}

/// The last one that was made, here or in a process that this one was forked from.
static SPAWNER: AtomicPtr<Spawner> = AtomicPtr::new(ptr::null_mut());

/// Starts `command` from the spawner's thread.
pub(super) async fn spawn(command: Command) -> Result<Made, SpawnError> {
    let (reply, answer) = oneshot::channel();
    let queue = Spawner::of_this_process().queue()?;
    let gone = || SpawnError::from(io::Error::other("the spawner thread has ended"));
    queue.send(Job { command, reply }).await.map_err(|_job| gone())?;
    answer.await.map_err(|_closed| gone())?
}

impl Spawner {
    fn of_this_process() -> &'static Self {
        loop {
            let current = SPAWNER.load(Ordering::Acquire);
            // SAFETY: it is null, or was leaked below before it was published, and is only ever shared.
            if let Some(spawner) = unsafe { current.as_ref() }
                && spawner.maker.is_this_process()
            {
                return spawner;
            }
            // Leaked, because others read it: a few bytes for each process of a line of forks, and for each thread that comes second.
            let own: &'static Self =
                Box::leak(Box::new(Self { maker: Maker::this_process(), queue: Mutex::new(None) }));
            let own = ptr::from_ref(own).cast_mut();
            // Whoever was first here is found by the next look.
            let _ = SPAWNER.compare_exchange(current, own, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    fn queue(&self) -> io::Result<mpsc::Sender<Job>> {
        let mut known = self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(queue) = known.as_ref().filter(|queue| !queue.is_closed()) {
            return Ok(queue.clone());
        }
        let (queue, jobs) = mpsc::channel(QUEUED_JOBS);
        let nursery = Nursery::new()?;
        thread::Builder::new().name("spawner".into()).spawn(move || work(nursery, jobs))?;
        *known = Some(queue.clone());
        Ok(queue)
    }
}

fn work(mut nursery: Nursery, mut jobs: mpsc::Receiver<Job>) {
    while let Some(Job { command, reply }) = jobs.blocking_recv() {
        // A child that nobody waits for any more comes back and is killed by its drop.
        let _ = reply.send(nursery.spawn(command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        maker::tests::{fork, is_well},
        process::Child,
    };

    fn starts_a_child() -> bool {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("there are descriptors");
        runtime.block_on(async {
            let command = Command::new("/bin/sh".into(), vec!["-c".into(), "exit 7".into()]);
            let mut child = Child::spawn(command).await.expect("sh starts");
            let ended = child.ended().await.expect("it is a child of this process");
            ended.status.and_then(|status| status.code()) == Some(7)
        })
    }

    #[test]
    fn a_forked_process_starts_children_whatever_the_other_was_doing() {
        assert!(starts_a_child());
        let held = Spawner::of_this_process().queue.lock().expect("no panic");
        let forked = fork(|| starts_a_child() && starts_a_child() && is_well(fork(starts_a_child)));
        drop(held);
        assert!(is_well(forked));
        assert!(starts_a_child());
    }
}
