//! The queue of uploads: bounded, worked off by a few tasks, and closed once.
//!
//! Owns the tasks and who waits. What an upload is, is whoever's business that is given each offer. A full queue drops what is offered: a
//! cache that is behind is better off without it than a run that waits.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, mpsc},
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use crate::entry::{EntryName, Offer};

/// Most offers that wait. Each holds its files open.
pub const MOST_WAITING: usize = 64;

/// How long uploads that are given up may take to tidy up behind themselves.
const TIDYING: Duration = Duration::from_secs(3);

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It will be uploaded when its turn comes.
    Queued,
    /// The same entry waits already, or is being uploaded.
    AlreadyQueued,
    /// Too many wait; it was dropped.
    Full,
    /// The cache is being closed; it was dropped.
    Closed,
}

/// What became of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Entries that were not uploaded in time. The last moment may have brought one of them there all the same.
    pub given_up: Vec<EntryName>,
}

/// An offer whose turn has come.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) offer: Offer,
    _place: InQueue,
}

/// An entry is in the queue for as long as this is there.
#[derive(Debug)]
struct InQueue {
    name: EntryName,
    names: Arc<Mutex<BTreeSet<EntryName>>>,
    _counted: TaskTrackerToken,
}

#[derive(Debug)]
pub(crate) struct Queue {
    sender: Mutex<Option<mpsc::Sender<Job>>>,
    names: Arc<Mutex<BTreeSet<EntryName>>>,
    jobs: TaskTracker,
    workers: TaskTracker,
    given_up: CancellationToken,
}

impl Drop for InQueue {
    fn drop(&mut self) {
        lock(&self.names).remove(&self.name);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.given_up.cancel();
    }
}

impl Queue {
    /// A queue that `workers` tasks work off, each with `work`, one job after another. They end with the queue.
    pub(crate) fn new<W, F>(workers: u8, work: W) -> Self
    where
        W: Fn(Job, CancellationToken) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        let receiver = Arc::new(AsyncMutex::new(receiver));
        let queue = Self {
            sender: Mutex::new(Some(sender)),
            names: Arc::default(),
            jobs: TaskTracker::new(),
            workers: TaskTracker::new(),
            given_up: CancellationToken::new(),
        };
        for _ in 0..workers {
            queue.workers.spawn(run(Arc::clone(&receiver), queue.given_up.clone(), work.clone()));
        }
        queue
    }

    pub(crate) fn offer(&self, offer: Offer) -> Offered {
        let sender = lock(&self.sender);
        let Some(sender) = sender.as_ref() else { return Offered::Closed };
        let name = offer.name.clone();
        if !lock(&self.names).insert(name.clone()) {
            return Offered::AlreadyQueued;
        }
        let place = InQueue { name, names: Arc::clone(&self.names), _counted: self.jobs.token() };
        match sender.try_send(Job { offer, _place: place }) {
            Ok(()) => Offered::Queued,
            Err(mpsc::error::TrySendError::Full(_)) => Offered::Full,
            Err(mpsc::error::TrySendError::Closed(_)) => Offered::Closed,
        }
    }

    /// Takes no more, waits for what is there, and gives up what takes longer.
    pub(crate) async fn drain(&self, patience: Duration) -> Drained {
        drop(lock(&self.sender).take());
        self.jobs.close();
        let done = timeout(patience, self.jobs.wait()).await;
        let given_up = if done.is_err() { mem::take(&mut *lock(&self.names)) } else { BTreeSet::new() };
        self.given_up.cancel();
        self.workers.close();
        if timeout(TIDYING, self.workers.wait()).await.is_err() {
            tracing::debug!("an upload that was given up has not ended");
        }
        Drained { given_up: given_up.into_iter().collect() }
    }
}

async fn run<W, F>(receiver: Arc<AsyncMutex<mpsc::Receiver<Job>>>, given_up: CancellationToken, work: W)
where
    W: Fn(Job, CancellationToken) -> F,
    F: Future<Output = ()>,
{
    let next = async || receiver.lock().await.recv().await;
    loop {
        let job = tokio::select! {
            biased;
            () = given_up.cancelled() => return,
            job = next() => job,
        };
        let Some(job) = job else { return };
        work(job, given_up.clone()).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked is a set and a sender, whole between any two steps.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
