//! The interpreters that wait for an execution, one for each language.

use std::{collections::HashMap, mem, time::Duration};

use exec_sandbox_wire::Language;
use tokio::time::timeout;

use crate::{interpreter::Interpreter, kmsg};

/// How long a program waits for its interpreter to have taken its seed. That takes a few milliseconds; one that needs longer is not
/// waited for, because starting another takes less.
const SEED_PATIENCE: Duration = Duration::from_secs(1);

/// Interpreters that nothing runs in.
#[derive(Debug, Default)]
pub(super) struct Interpreters(HashMap<Language, Interpreter>);

impl Interpreters {
    /// The one of a language, once it has taken its seed; none if there is none that can take an execution. Cancelling it loses nothing.
    pub(super) async fn take(&mut self, language: Language) -> Option<Interpreter> {
        let seeded = timeout(SEED_PATIENCE, self.0.get_mut(&language)?.has_taken_its_seeds()).await;
        let mut interpreter = self.0.remove(&language)?;
        if seeded != Ok(true) {
            kmsg::warn(&format!("an interpreter does not take its seed, and is ended: {language:?}"));
            return None;
        }
        interpreter.is_usable().then_some(interpreter)
    }

    /// Keeps one for the next execution.
    pub(super) fn keep(&mut self, language: Language, interpreter: Interpreter) {
        self.0.insert(language, interpreter);
    }

    /// Ends them all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Has them all depend on seeds of their own. None is waited for before it is taken.
    pub(super) async fn reseed(&mut self) {
        for (language, mut interpreter) in mem::take(&mut self.0) {
            match timeout(SEED_PATIENCE, interpreter.reseed()).await {
                Ok(Ok(())) => self.keep(language, interpreter),
                _ => kmsg::warn(&format!("an interpreter cannot be given a seed, and is ended: {language:?}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        os::unix::{net::UnixStream, process::CommandExt as _},
        process::{self, Command},
        thread,
    };

    use rustix::process::{Pid, Signal};
    use tokio::sync::oneshot;

    use super::*;
    use crate::reaper::{Child, Exit};

    /// What the test holds of an interpreter: its process, and the promise that is kept when it ends.
    struct Held {
        process: process::Child,
        _exit: oneshot::Sender<Exit>,
    }

    /// An interpreter that gives this answer to the token of each seed.
    fn interpreter(mut answer: impl FnMut(&str) -> String + Send + 'static) -> (Interpreter, Held) {
        let process = Command::new("sleep").arg("1000").process_group(0).spawn().expect("a process");
        let pid = Pid::from_child(&process);
        let (tell, exit) = oneshot::channel();
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a flag");
        let interpreter = Interpreter::pretend(Child { pid, exit }, ours.into()).expect("it can be watched");
        thread::spawn(move || {
            // Until the other end is closed.
            let mut lines = BufReader::new(&theirs).lines().map_while(Result::ok);
            while let Some(verb) = lines.next() {
                let [token, seed] = [(); 2].map(|()| lines.next().expect("an order is three lines"));
                assert_eq!((&verb[..], token.len(), seed.len()), ("seed", 32, 64));
                (&theirs).write_all(answer(&token).as_bytes()).expect("it is heard");
            }
        });
        (interpreter, Held { process, _exit: tell })
    }

    impl Held {
        fn was_killed(mut self) -> bool {
            let status = self.process.wait().expect("a child");
            std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::KILL.as_raw())
        }
    }

    #[tokio::test]
    async fn only_an_interpreter_that_takes_its_seed_is_given_a_program() {
        let mut interpreters = Interpreters::default();
        let (good, held) = interpreter(|token| format!("\nseeded {token}\n"));
        let (mute, held_mute) = interpreter(|_| String::new());
        let (liar, held_liar) = interpreter(|_| format!("\nseeded {}\n", "0".repeat(32)));
        interpreters.keep(Language::Python, good);
        interpreters.keep(Language::JavaScript, mute);
        interpreters.keep(Language::Raw, liar);
        interpreters.reseed().await;
        assert!(interpreters.take(Language::JavaScript).await.is_none());
        assert!(interpreters.take(Language::Raw).await.is_none());
        assert!(held_mute.was_killed() && held_liar.was_killed());
        let kept = interpreters.take(Language::Python).await;
        assert!(kept.is_some(), "it is silent, so it can take an execution");
        interpreters.keep(Language::Python, kept.expect("it is there"));
        interpreters.clear();
        assert!(held.was_killed());
    }

    #[tokio::test]
    async fn an_interpreter_is_waited_for_until_it_has_taken_every_seed_and_kept_if_nobody_waits_for_so_long() {
        let mut interpreters = Interpreters::default();
        let (answers, next) = std::sync::mpsc::channel::<()>();
        let (slow, held) = interpreter(move |token| {
            let _ = next.recv();
            format!("\nseeded {token}\n")
        });
        interpreters.keep(Language::Python, slow);
        for _ in 0..2 {
            interpreters.reseed().await;
        }
        for _ in 0..2 {
            let taken = timeout(Duration::from_millis(50), interpreters.take(Language::Python)).await;
            assert!(taken.is_err(), "it has a seed to answer for");
            answers.send(()).expect("it waits");
        }
        let taken = interpreters.take(Language::Python).await;
        assert!(taken.is_some(), "it has answered for both");
        drop(taken);
        assert!(held.was_killed());
    }
}
