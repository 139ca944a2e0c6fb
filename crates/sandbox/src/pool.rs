//! The pool: VMs of each language that are up, exercised and idle before anybody asks for them.
//!
//! A keeper makes what is lacking, one after another and behind everybody who waits for a result, and sleeps while nothing is: it is
//! woken when a VM is taken or ends. Below the pool it keeps a stock of blanks. Whoever takes a VM is given one whose agent has just
//! answered; one that does not answer is ended. When memory is short what is idle here goes first, VMs before blanks.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Error, ErrorKind, Language, QemuVm,
    admission::{Admission, Priority},
    request::{ValidExec, ValidVm},
    vm::{Common, called_off},
};

/// After a failure the next try is later: from this long, twice as long each time, to at most so long.
const FIRST_REST: Duration = Duration::from_secs(1);
const LAST_REST: Duration = Duration::from_secs(60);

/// How long nothing is made after a VM was taken: whoever took it runs meanwhile, and most programs are short.
const COURTESY: Duration = Duration::from_millis(25);

/// How long an idle VM may take to answer whoever wants it; it takes a millisecond or two. Where one takes longer the machine is
/// overloaded, and the next would too.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);

/// How long the program may take that exercises a VM.
const EXERCISE_TIMEOUT: Duration = Duration::from_secs(30);

/// Times that a VM is exercised: the first translates most of what a program needs, the second what follows from that.
const EXERCISES: usize = 2;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Pool {
    /// As many are kept of each language.
    most: usize,
    common: Common,
    admission: Admission,
    ready: Mutex<HashMap<Language, VecDeque<QemuVm>>>,
    /// Whether nothing is lacking.
    is_full: watch::Sender<bool>,
}

/// What is to be made next.
enum Lack {
    Ready(Language),
    Blank,
}

impl Pool {
    /// Begins to fill a pool, unless the configuration wants none. It is kept until `end`, and then all that is idle in it is ended.
    pub(crate) fn start(common: &Common, admission: &Admission, end: CancellationToken) -> Option<Arc<Self>> {
        let most = common.config.warm_pool_size;
        if most == 0 && !common.host.blanks.are_lacking() {
            return None;
        }
        let (common, admission) = (common.clone(), admission.clone());
        let pool = Self { most, common, admission, ready: Mutex::default(), is_full: watch::Sender::new(false) };
        let pool = Arc::new(pool);
        pool.common.alive.spawn(Arc::clone(&pool).keep(end));
        Some(pool)
    }

    /// A VM that may be `spec`, if there is one that answers. Called `off`, it returns when the one that was asked is gone.
    pub(crate) async fn take(&self, spec: &ValidVm, off: &CancellationToken) -> Result<Option<QemuVm>, Error> {
        let ValidVm { memory_mib, layer: None, network: None, boot_log: None, .. } = spec else { return Ok(None) };
        if *memory_mib != self.common.config.default_memory_mib {
            return Ok(None);
        }
        while let Some(mut vm) = self.take_first(spec.language) {
            let claimed = tokio::select! {
                biased;
                claimed = timeout(CLAIM_PATIENCE, vm.claim(&self.common.host, spec)) => claimed,
                () = off.cancelled() => {
                    vm.destroy().await?;
                    return Err(called_off());
                }
            };
            // One that is dropped is ended.
            match claimed {
                Ok(Ok(())) => return Ok(Some(vm)),
                Ok(Err(error)) => warn!(vm_id = vm.vm_id(), %error, "a VM of the pool cannot be used"),
                Err(_elapsed) => {
                    warn!(vm_id = vm.vm_id(), "a VM of the pool does not answer in time");
                    break;
                }
            }
        }
        Ok(None)
    }

    /// Lets the oldest of the largest stock go, for its memory is needed, and a blank when no VM is left. `false`: there is none.
    pub(crate) fn give_up_one(&self) -> bool {
        let given_up = {
            let mut ready = self.ready();
            let largest = ready.values_mut().max_by_key(|stock| stock.len());
            largest.and_then(VecDeque::pop_front)
        };
        self.is_full.send_replace(false);
        match &given_up {
            Some(vm) => {
                debug!(vm_id = vm.vm_id(), "a VM of the pool makes room");
                true
            }
            None => self.common.host.blanks.give_up_one(&self.common.alive),
        }
    }

    /// Waits until nothing is lacking.
    pub(crate) async fn wait_until_full(&self, patience: Duration) -> Result<(), Error> {
        // What has ended is noticed now, and not when the keeper gets to it.
        self.forget_the_dead();
        if self.lack().is_some() {
            self.common.host.bell.notify_one();
        }
        let mut is_full = self.is_full.subscribe();
        match timeout(patience, is_full.wait_for(|is_full| *is_full)).await {
            Ok(_full_or_closed) => Ok(()),
            Err(_elapsed) => {
                let waited = patience.as_secs_f64();
                let message = format!("waiting for the pool: it was not full within {waited} s");
                let error = Error::new(ErrorKind::BootTimeout, message);
                Err(error.remedied_by("wait longer, or ask for a smaller warm_pool_size; the log says what failed"))
            }
        }
    }

    async fn keep(self: Arc<Self>, end: CancellationToken) {
        let host = &self.common.host;
        let mut rest = FIRST_REST;
        loop {
            self.forget_the_dead();
            let lack = self.lack();
            let next = async {
                let Some(lack) = lack else {
                    host.bell.notified().await;
                    return tokio::time::sleep(COURTESY).await;
                };
                match self.fill(lack).await {
                    Ok(()) => rest = FIRST_REST,
                    Err(error) => {
                        warn!(error = &error as &dyn std::error::Error, "the pool could not be filled");
                        tokio::time::sleep(rest).await;
                        rest = (2 * rest).min(LAST_REST);
                    }
                }
            };
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = next => {}
            }
        }
        // Dropped, they are ended by their owners.
        self.ready().clear();
        host.blanks.clear().await;
    }

    /// The first of a language, whether it lives or not. The keeper learns of it.
    fn take_first(&self, language: Language) -> Option<QemuVm> {
        let mut ready = self.ready();
        let vm = ready.get_mut(&language)?.pop_front()?;
        self.is_full.send_replace(false);
        self.common.host.bell.notify_one();
        Some(vm)
    }

    /// What is to be made next; told to those who wait for a full pool before anybody can take from it again.
    fn lack(&self) -> Option<Lack> {
        let ready = self.ready();
        let stock = |language: &Language| ready.get(language).map_or(0, VecDeque::len);
        // The smallest stock first, so that each language has its first VM soon.
        let least = self.common.host.languages.iter().copied().min_by_key(stock);
        let lack = match least.filter(|language| stock(language) < self.most) {
            Some(language) => Some(Lack::Ready(language)),
            None if self.common.host.blanks.are_lacking() => Some(Lack::Blank),
            None => None,
        };
        self.is_full.send_replace(lack.is_none());
        lack
    }

    async fn fill(&self, lack: Lack) -> Result<(), Error> {
        match lack {
            Lack::Ready(language) => {
                let vm = self.make(language).await?;
                debug!(vm_id = vm.vm_id(), %language, "a VM is ready");
                self.put(vm);
                Ok(())
            }
            Lack::Blank => {
                let permit = self.admission.admit_blank().await?;
                let host = Arc::clone(&self.common.host);
                // A task of its own, which whoever closes waits for: the keeper may leave while a QEMU is being started.
                let adding = self.common.alive.spawn(async move { host.blanks.add(&host, permit).await });
                // It is never aborted; a panic has been told by then, and left nothing behind.
                adding.await.unwrap_or(Ok(()))
            }
        }
    }

    async fn make(&self, language: Language) -> Result<QemuVm, Error> {
        let spec = ValidVm::plain(language, self.common.config.default_memory_mib);
        let permit = self.admission.admit(spec.memory_mib, Priority::Low).await?;
        let vm = QemuVm::boot(&self.common, spec, permit, &CancellationToken::new()).await?;
        for _ in 0..EXERCISES {
            vm.run(ValidExec::rehearsal(language, EXERCISE_TIMEOUT), None).await?;
        }
        Ok(vm)
    }

    /// Keeps a VM for whoever asks.
    pub(crate) fn put(&self, vm: QemuVm) {
        self.ready().entry(vm.language()).or_default().push_back(vm);
    }

    fn forget_the_dead(&self) {
        for stock in self.ready().values_mut() {
            stock.retain(|vm| vm.ended_because().is_none());
        }
    }

    fn ready(&self) -> MutexGuard<'_, HashMap<Language, VecDeque<QemuVm>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
