//! The interpreters that wait for an execution, one for each language.

use std::{collections::HashMap, time::Duration};

use exec_sandbox_wire::Language;
use tokio::time::{Instant, timeout_at};

use crate::{
    interpreter::{Interpreter, Token},
    kmsg,
};

/// How long an interpreter may need to take a seed. It takes a few milliseconds; one that needs longer is not waited for, because
/// starting another takes less.
const SEED_PATIENCE: Duration = Duration::from_secs(1);

/// Interpreters that nothing runs in.
#[derive(Debug, Default)]
pub(super) struct Interpreters(HashMap<Language, Interpreter>);

impl Interpreters {
    /// The one of a language, if there is one that can take an execution.
    pub(super) fn take(&mut self, language: Language) -> Option<Interpreter> {
        let mut interpreter = self.0.remove(&language)?;
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

    /// Has them all depend on seeds of their own. One that does not answer that it does is ended.
    pub(super) async fn reseed(&mut self) {
        let deadline = Instant::now() + SEED_PATIENCE;
        let mut told: Vec<(Language, Interpreter, Token)> = Vec::new();
        // All are told before any is waited for.
        for (language, mut interpreter) in self.0.drain() {
            if !interpreter.is_usable() {
                continue;
            }
            match timeout_at(deadline, interpreter.reseed()).await {
                Ok(Ok(token)) => told.push((language, interpreter, token)),
                _ => kmsg::warn(&format!("an interpreter cannot be given a seed, and is ended: {language:?}")),
            }
        }
        for (language, mut interpreter, token) in told {
            if timeout_at(deadline, interpreter.has_reseeded(token)).await == Ok(true) {
                self.keep(language, interpreter);
            } else {
                kmsg::warn(&format!("an interpreter does not take its seed, and is ended: {language:?}"));
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

    /// An interpreter that gives this answer to the token of a seed.
    fn interpreter(answer: impl FnOnce(&str) -> String + Send + 'static) -> (Interpreter, Held) {
        let process = Command::new("sleep").arg("1000").process_group(0).spawn().expect("a process");
        let pid = Pid::from_child(&process);
        let (tell, exit) = oneshot::channel();
        let (ours, theirs) = UnixStream::pair().expect("a socket");
        ours.set_nonblocking(true).expect("a flag");
        let interpreter = Interpreter::pretend(Child { pid, exit }, ours.into()).expect("it can be watched");
        thread::spawn(move || {
            let mut wrapper = BufReader::new(theirs);
            let mut line = String::new();
            wrapper.read_line(&mut line).expect("it is spoken to");
            let words: Vec<&str> = line.trim_end().split(' ').collect();
            let [verb, token, seed] = words[..] else { panic!("{line}") };
            assert_eq!((verb, token.len(), seed.len()), ("seed", 32, 64));
            wrapper.get_mut().write_all(answer(token).as_bytes()).expect("it is heard");
            // Until the other end is closed.
            let _ = wrapper.read_line(&mut line);
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
    async fn only_an_interpreter_that_takes_its_seed_is_kept() {
        let mut interpreters = Interpreters::default();
        let (good, held) = interpreter(|token| format!("\nseeded {token}\n"));
        let (mute, held_mute) = interpreter(|_| String::new());
        let (liar, held_liar) = interpreter(|_| format!("\nseeded {}\n", "0".repeat(32)));
        interpreters.keep(Language::Python, good);
        interpreters.keep(Language::JavaScript, mute);
        interpreters.keep(Language::Raw, liar);
        interpreters.reseed().await;
        assert!(held_mute.was_killed() && held_liar.was_killed());
        assert!(interpreters.take(Language::JavaScript).is_none() && interpreters.take(Language::Raw).is_none());
        let kept = interpreters.take(Language::Python);
        assert!(kept.is_some(), "it is silent, so it can take an execution");
        interpreters.keep(Language::Python, kept.expect("it is there"));
        interpreters.clear();
        assert!(held.was_killed());
    }
}
