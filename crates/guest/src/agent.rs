//! The agent: everything after the bring-up, on one thread.
//!
//! Four things run side by side and wait for one another only through bounded queues: this loop (the host's frames and what follows
//! from them), the port (bytes in, frames out), the executor (programs), the reaper (exit statuses). Files are another thread's, which
//! never waits for this one. None polls: an idle agent sleeps in the kernel.
//!
//! ```text
//!   port reader ──▶ agent ──▶ executor ──▶ interpreters
//!   port writer ◀────┼───────────┘  (output goes to the writer directly, while its program runs)
//!         ▲          └──────▶ files
//!         └─────────────────────┘   (what is read as well)
//! ```

use std::{convert::Infallible, io, rc::Rc, time::Instant};

use exec_sandbox_wire::{CONNECTION_OP, FrameDecoder, GENERATION, GuestMessage, Hello, HostMessage, NetworkState};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::{
    boot_id::BootId,
    clock,
    exec::{Command, Executor, Finished, Parts},
    files::{Files, Note},
    init::{self, Ground},
    interpreter, kmsg, network,
    operations::{Effect, Operations},
    output::Outbox,
    port::{self, Connection, Event, Outgoing, PortError},
    random::{Generator, Seed},
    reaper::Reaper,
};

/// Commands on their way to the executor, which takes them in every state.
const COMMANDS: usize = 64;

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// No event loop.
    #[error("cannot start the event loop")]
    Runtime { source: io::Error },
    /// No port.
    #[error("cannot reach the host")]
    Port { source: PortError },
    /// No identity for this boot.
    #[error("cannot draw the boot's identity")]
    BootId { source: Errno },
    /// No generator to be seeded.
    #[error("cannot open the kernel's random generator")]
    Generator { source: Errno },
    /// The machine is a copy of another, and would go on as that one.
    #[error("cannot become a machine of its own")]
    Renewal { source: Errno },
    /// Wrappers are missing.
    #[error("cannot write the interpreters' wrappers")]
    Wrappers { source: io::Error },
    /// Files cannot be worked on.
    #[error("cannot start the worker of files")]
    Files { source: io::Error },
    /// Exit statuses cannot be collected.
    #[error("cannot learn of processes that end")]
    Reaper { source: io::Error },
    /// A part of the agent has ended.
    #[error("the agent's {part} has ended")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

#[derive(Debug)]
struct Agent {
    boot_id: BootId,
    generator: Generator,
    operations: Operations,
    decoder: FrameDecoder,
    connection: Option<Connection>,
    /// The host broke the contract: nothing it says can be told apart from the rest until it comes anew.
    deaf: bool,
    outgoing: mpsc::Sender<Outgoing>,
    commands: mpsc::Sender<Command>,
    files: Files,
}

/// Serves the host for as long as the machine lives.
pub(crate) fn serve(ground: Ground) -> Result<Infallible, AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| AgentError::Runtime { source })?.block_on(run(ground))
}

async fn run(ground: Ground) -> Result<Infallible, AgentError> {
    let mut boot_id = BootId::draw().map_err(|source| AgentError::BootId { source })?;
    if let Err(error) = boot_id.publish() {
        kmsg::warn(&format!("cannot show programs the boot's identity: {error}"));
    }
    let generator = Generator::open().map_err(|source| AgentError::Generator { source })?;
    let port = port::open().map_err(|source| AgentError::Port { source })?;
    init::seal_devices();
    let reaper = Rc::new(Reaper::default());
    let (commands, to_executor) = mpsc::channel(COMMANDS);
    let (finished, from_executor) = mpsc::channel(1);
    let executor = Executor::new(Parts {
        group: ground.user_group,
        reaper: Rc::clone(&reaper),
        outbox: Outbox::new(port.outgoing.clone()),
        commands: to_executor,
        finished,
    });
    interpreter::install().map_err(|source| AgentError::Wrappers { source })?;
    let files = Files::start(port.outbound).map_err(|source| AgentError::Files { source })?;
    let agent = Agent {
        boot_id,
        generator,
        operations: Operations::default(),
        decoder: FrameDecoder::default(),
        connection: None,
        deaf: false,
        outgoing: port.outgoing,
        commands,
        files,
    };
    tokio::select! {
        // What the agent has said goes out before the executor does what it was told: a copy answers before its interpreters are woken.
        biased;
        error = agent.run(port.events, from_executor) => Err(error),
        ended = port.traffic.run() => Err(match ended {
            Err(source) => AgentError::Port { source: PortError::Broken { source } },
            Ok(()) => AgentError::Ended { part: "port" },
        }),
        () = executor.run() => Err(AgentError::Ended { part: "executor" }),
        source = reaper.run() => Err(AgentError::Reaper { source }),
    }
}

impl Agent {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut finished: mpsc::Receiver<Finished>) -> AgentError {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Up(connection)) => self.greet(connection).await,
                    Some(Event::Bytes(bytes)) => self.hear(&bytes).await,
                    Some(Event::Down) => self.lose().await,
                    None => return AgentError::Ended { part: "port" },
                },
                finished = finished.recv() => match finished {
                    Some(finished) => {
                        let effects = self.operations.finish(finished);
                        self.follow(effects).await;
                    }
                    None => return AgentError::Ended { part: "executor" },
                },
                note = self.files.note() => match note {
                    Some(Note::Over(op, end)) => {
                        let effects = self.operations.finish_file(op, end);
                        self.follow(effects).await;
                    }
                    // Only ever an answer, and waited for where it was asked for.
                    Some(Note::Cleared) => {}
                    None => return AgentError::Ended { part: "worker of files" },
                },
            }
        }
    }

    /// A host is there: who we are. What it may have missed follows its answer, which says what that is.
    async fn greet(&mut self, connection: Connection) {
        self.connection = Some(connection);
        (self.decoder, self.deaf) = (FrameDecoder::default(), false);
        self.introduce(connection).await;
    }

    async fn introduce(&mut self, connection: Connection) {
        // First, so that the executor sends nothing more that is meant for an earlier host.
        let command = self.operations.greet();
        self.drop_files().await;
        let hello = Hello {
            generation: GENERATION,
            boot_id: self.boot_id.bytes().to_vec(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Hello::default()
        };
        let frame = GuestMessage::Hello(hello).into_frame(CONNECTION_OP);
        let _ = self.outgoing.send(Outgoing::Open(connection, frame)).await;
        self.tell(command).await;
    }

    async fn lose(&mut self) {
        self.connection = None;
        let command = self.operations.lose();
        self.drop_files().await;
        self.tell(command).await;
    }

    /// What is under way with files ends with its connection.
    async fn drop_files(&mut self) {
        if self.operations.drop_files() {
            self.files.clear().await;
        }
    }

    async fn hear(&mut self, bytes: &[u8]) {
        if self.deaf {
            return;
        }
        self.decoder.buffer().extend_from_slice(bytes);
        loop {
            let heard = match self.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(frame.op, HostMessage::parse(frame)).await,
                Err(error) => Err(kmsg::chain(&error)),
            };
            if let Err(why) = heard {
                kmsg::warn(&format!("the host is not listened to until it comes anew: {why}"));
                self.deaf = true;
                return;
            }
        }
    }

    async fn frame<E: std::error::Error>(&mut self, op: u32, message: Result<HostMessage, E>) -> Result<(), String> {
        let message = message.map_err(|error| kmsg::chain(&error))?;
        let effects = self.operations.hear(op, message, Instant::now()).map_err(|error| kmsg::chain(&error))?;
        self.follow(effects).await;
        Ok(())
    }

    async fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                // Queued in turn with the executor's. The writer lives as long as the agent, and drops what has no host.
                Effect::Send(frame) => drop(self.outgoing.send(Outgoing::Frame(frame)).await),
                Effect::Tell(command) => self.tell(Some(command)).await,
                Effect::File(job) => self.files.tell(job).await,
                Effect::Clock(unix_time_ns) => {
                    if let Err(error) = clock::set(unix_time_ns) {
                        kmsg::warn(&format!("cannot set the clock: {error}"));
                    }
                }
                Effect::Renew(seed) => self.renew(&seed),
                Effect::Network(network) => {
                    let failure = network::set_up(&network).err().map(|error| kmsg::chain(&error)).unwrap_or_default();
                    let frame = GuestMessage::Network(NetworkState { failure }).into_frame(CONNECTION_OP);
                    drop(self.outgoing.send(Outgoing::Frame(frame)).await);
                }
                Effect::Greet => {
                    if let Some(connection) = self.connection {
                        self.introduce(connection).await;
                    }
                }
            }
        }
    }

    /// From here on this machine draws other random numbers than the one that it is a copy of, and has another identity. Its
    /// interpreters take seeds of their own before a program runs in them.
    fn renew(&mut self, seed: &Seed) {
        if let Err(source) = self.generator.seed(seed).and_then(|()| self.boot_id.renew()) {
            kmsg::fatal(&AgentError::Renewal { source });
        }
    }

    async fn tell(&self, command: Option<Command>) {
        if let Some(command) = command {
            let _ = self.commands.send(command).await;
        }
    }
}
