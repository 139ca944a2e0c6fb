//! The spinner: something to look at while a VM boots.
//!
//! It appears on a terminal when waiting has become noticeable and is gone for good before the first byte of output.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// Below this nobody wonders what is going on.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// How often the spinner moves: smooth, and no load.
const TICK: Duration = Duration::from_millis(100);

/// A handle to the one spinner; clones are the same spinner.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    phase: Arc<Mutex<Phase>>,
}

#[derive(Debug)]
enum Phase {
    Waiting { message: String },
    Shown(ProgressBar),
    Over,
}

impl Progress {
    /// A spinner that says `message` once waiting is noticeable. Without `wanted` it never appears.
    pub(crate) fn start(message: &str, wanted: bool) -> Self {
        let phase = if wanted { Phase::Waiting { message: message.into() } } else { Phase::Over };
        Self { phase: Arc::new(Mutex::new(phase)) }
    }

    /// Shows the spinner when its time has come. Never ends, so that it runs beside the work.
    pub(crate) async fn appear<T>(&self) -> T {
        tokio::time::sleep(NOTICEABLE).await;
        self.change(|phase| match phase {
            Phase::Waiting { message } => Phase::Shown(spinner(message)),
            other => other,
        });
        std::future::pending().await
    }

    /// Says something else from now on.
    pub(crate) fn say(&self, message: &str) {
        self.change(|phase| match phase {
            Phase::Waiting { .. } => Phase::Waiting { message: message.into() },
            Phase::Shown(bar) => {
                bar.set_message(message.to_owned());
                Phase::Shown(bar)
            }
            Phase::Over => Phase::Over,
        });
    }

    /// Takes the spinner off the terminal for good.
    pub(crate) fn end(&self) {
        self.change(|phase| {
            if let Phase::Shown(bar) = phase {
                bar.finish_and_clear();
            }
            Phase::Over
        });
    }

    fn change(&self, step: impl FnOnce(Phase) -> Phase) {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        *phase = step(std::mem::replace(&mut *phase, Phase::Over));
    }
}

fn spinner(message: String) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}… {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spinner_that_is_over_stays_over() {
        let progress = Progress::start("waiting", true);
        progress.end();
        progress.say("again");
        assert!(matches!(*progress.phase.lock().expect("nobody panicked"), Phase::Over));
    }

    #[test]
    fn nobody_sees_a_spinner_that_nobody_wants() {
        let progress = Progress::start("waiting", false);
        progress.say("again");
        assert!(matches!(*progress.phase.lock().expect("nobody panicked"), Phase::Over));
    }
}
