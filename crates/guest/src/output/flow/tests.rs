//! One stream beside a model of its host: whatever happens to the connection, the host gets each byte once.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const WINDOW: u64 = limits::STREAM_WINDOW_BYTES as u64;

/// What may happen to a stream.
#[derive(Clone, Debug)]
enum Step {
    /// The program writes so many bytes; more than may be sent only as it ends, but that is not the stream's to know.
    Write(usize),
    /// The program writes them one by one.
    Dribble(usize),
    /// So many pieces may be sent.
    Send(usize),
    /// So many pieces that were sent arrive.
    Arrive(usize),
    /// The host takes so many bytes and grants for all it has taken.
    Take(usize),
    /// The grants that are on their way arrive.
    Granted,
    /// The connection is lost, with all that is on its way.
    Lose,
    /// The host is back and says how far it has come.
    Return,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0_usize..200_000).prop_map(Step::Write),
        1 => (1_usize..3_000).prop_map(Step::Dribble),
        4 => (1_usize..8).prop_map(Step::Send),
        4 => (1_usize..8).prop_map(Step::Arrive),
        3 => (0_usize..200_000).prop_map(Step::Take),
        3 => Just(Step::Granted),
        1 => Just(Step::Lose),
        2 => Just(Step::Return),
    ];
    prop::collection::vec(step, 1..80)
}

/// A host, what is on its way to it and from it, and the program.
#[derive(Debug)]
struct World {
    flow: Flow,
    cap: usize,
    written: usize,
    connected: bool,
    on_the_way: VecDeque<Bytes>,
    received: usize,
    /// Of what was received, so much was taken.
    taken: usize,
    /// What the host has granted and the agent has not heard.
    granted: u32,
    window: Window,
}

/// What a program writes from one place on. Each byte tells its place.
fn text(from: usize, bytes: usize) -> &'static [u8] {
    static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=250).cycle().take(1_000_000).collect());
    &TEXT[from % 251..][..bytes]
}

impl World {
    fn new(cap: usize) -> Self {
        let mut flow = Flow::new(cap as u64);
        flow.restart();
        Self {
            flow,
            cap,
            written: 0,
            connected: true,
            on_the_way: VecDeque::new(),
            received: 0,
            taken: 0,
            granted: 0,
            window: Window::default(),
        }
    }

    fn write(&mut self, bytes: usize) {
        self.flow.push(text(self.written, bytes));
        self.written += bytes;
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write(bytes) => self.write(bytes),
            Step::Dribble(bytes) => (0..bytes).for_each(|_| self.write(1)),
            Step::Send(pieces) => {
                let sent: Vec<_> = std::iter::from_fn(|| self.flow.next_chunk()).take(pieces).collect();
                assert!(self.connected || sent.is_empty(), "sent to nobody");
                self.on_the_way.extend(sent);
            }
            Step::Arrive(pieces) => {
                for piece in self.on_the_way.drain(..pieces.min(self.on_the_way.len())) {
                    assert!(!piece.is_empty() && piece.len() <= CHUNK_BYTES);
                    assert_eq!(self.window.take(piece.len()), piece.len(), "more than was granted");
                    assert!(piece == text(self.received, piece.len()), "a byte is lost or repeated");
                    self.received += piece.len();
                }
            }
            Step::Take(bytes) => {
                let taken = bytes.min(self.received - self.taken);
                self.taken += taken;
                let granted = u32::try_from(taken).expect("it is small");
                self.window.grant(granted).expect("it was received");
                if self.connected {
                    self.granted += granted;
                }
            }
            Step::Granted => self.flow.grant(std::mem::take(&mut self.granted)).expect("the host is honest"),
            Step::Lose => {
                self.connected = false;
                self.on_the_way.clear();
                self.granted = 0;
                self.flow.suspend();
            }
            Step::Return => {
                if !self.connected {
                    self.connected = true;
                    let credit = u32::try_from(self.window.available()).expect("it is small");
                    self.flow.resume(self.received as u64, credit).expect("the host is honest");
                }
            }
        }
    }

    fn check(&self) {
        assert!(self.received <= self.cap, "the cap");
        assert_eq!(self.flow.total(), self.written as u64);
        let kept: usize = self.flow.kept.iter().map(Bytes::len).sum();
        assert_eq!(kept as u64, self.flow.kept());
        assert!(self.flow.kept() <= WINDOW + self.flow.unsent(), "a window, and what was not sent");
        assert!(self.flow.kept.len() <= 2 * kept / SMALL_BYTES + 2, "pieces are few");
    }
}

proptest! {
    #[test]
    fn wherever_connections_are_lost_the_host_gets_each_byte_once_and_in_order(
        cap in 0_usize..400_000,
        steps in steps(),
    ) {
        let mut world = World::new(cap);
        for step in &steps {
            world.step(step);
            world.check();
        }
        // A host that stays and reads gets all of the rest.
        let rest = [Step::Return, Step::Send(8), Step::Arrive(8), Step::Take(600_000), Step::Granted];
        while world.received < world.written.min(cap) {
            let before = world.received;
            rest.iter().cycle().take(2 * rest.len()).for_each(|step| world.step(step));
            world.check();
            prop_assert!(world.received > before, "it has come to a halt");
        }
        prop_assert_eq!((world.flow.next_chunk(), world.on_the_way.len()), (None, 0));
    }

    #[test]
    fn a_program_is_read_no_further_than_is_granted_and_is_never_held_up_past_the_cap(
        cap in 0_u64..500_000,
        writes in prop::collection::vec(1_usize..400_000, 1..12),
    ) {
        let mut flow = Flow::new(cap);
        flow.restart();
        let (mut sent, mut written) = (0_u64, 0_u64);
        for mut waiting in writes {
            written += waiting as u64;
            while waiting > 0 {
                match flow.allowance() {
                    Allowance::Read(most) | Allowance::Discard(most) => {
                        let bytes = most.min(waiting);
                        flow.push(&vec![0; bytes]);
                        waiting -= bytes;
                    }
                    Allowance::Send => prop_assert!(false, "all is sent that was read"),
                    Allowance::Wait => flow.grant(limits::STREAM_WINDOW_BYTES).expect("nothing is left of it"),
                }
                sent += std::iter::from_fn(|| flow.next_chunk()).map(|chunk| chunk.len() as u64).sum::<u64>();
                prop_assert_eq!(flow.unsent(), 0);
            }
        }
        prop_assert_eq!(sent, cap.min(written));
        prop_assert_eq!(flow.total(), written);
    }

    #[test]
    fn a_host_that_lies_about_how_far_it_has_come_changes_nothing(have in 0_u64..2_000_000, credit in any::<u32>()) {
        let mut flow = Flow::new(1_000_000);
        flow.restart();
        flow.push(&[7; 200_000]);
        while flow.next_chunk().is_some() {}
        flow.grant(50_000).expect("it was sent");
        flow.push(&[8; 100_000]);
        flow.suspend();
        let honest = (50_000..=200_000).contains(&have) && credit <= limits::STREAM_WINDOW_BYTES;
        prop_assert_eq!(flow.resume(have, credit).is_ok(), honest);
        if honest {
            prop_assert_eq!(flow.unsent(), 300_000 - have);
        } else {
            prop_assert_eq!((flow.next_chunk(), flow.unsent(), flow.kept()), (None, 100_000, 250_000));
        }
    }
}

#[test]
fn without_a_host_nothing_is_read_and_nothing_is_sent() {
    let mut flow = Flow::new(10);
    assert_eq!(flow.allowance(), Allowance::Wait);
    flow.push(b"what waited in the pipe");
    assert_eq!((flow.next_chunk(), flow.unsent(), flow.total()), (None, 10, 23));
    assert_eq!(flow.allowance(), Allowance::Wait, "past the cap too: nobody is there to whom it matters");
    assert_eq!(flow.grant(5), Ok(()), "it was on its way, and is void");
    flow.restart();
    assert_eq!(flow.next_chunk(), Some(Bytes::from_static(b"what waite")));
    assert_eq!(flow.allowance(), Allowance::Discard(CHUNK_BYTES));
}

#[test]
fn a_host_that_does_not_say_how_far_it_has_come_is_sent_what_is_kept() {
    let mut flow = Flow::new(1_000);
    flow.restart();
    flow.push(b"one two ");
    assert_eq!(flow.next_chunk(), Some(Bytes::from_static(b"one two ")));
    flow.grant(4).expect("it was sent");
    flow.suspend();
    flow.push(b"three");
    flow.restart();
    assert_eq!(flow.next_chunk(), Some(Bytes::from_static(b"two three")));
    flow.suspend();
    flow.resume(13, 0).expect("the first host has all but the end of it, from before");
    assert_eq!(flow.unsent(), 0);
}

#[test]
fn what_nobody_wants_is_counted_and_not_kept() {
    let mut flow = Flow::new(1_000);
    flow.restart();
    flow.push(&[1; 600]);
    flow.next_chunk();
    flow.push(&[2; 100]);
    flow.give_up();
    flow.push(&[3; 100]);
    assert_eq!((flow.unsent(), flow.kept(), flow.total(), flow.next_chunk()), (0, 0, 800, None));
    flow.suspend();
    assert_eq!(flow.resume(0, 0), Ok(()), "it may lack what it did not want");
    assert!(flow.resume(601, 0).is_err(), "and cannot have what was not sent");
}

#[test]
fn a_piece_that_is_being_written_is_shared_and_not_copied() {
    let mut flow = Flow::new(100_000);
    flow.restart();
    flow.push(&[1; 5_000]);
    let (kept, sent) = (flow.kept[0].clone(), flow.next_chunk().expect("it may be sent"));
    assert_eq!(kept.as_ptr(), sent.as_ptr());
}
