//! File operations on a real directory, as the table would ask for them.

mod entries;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use exec_sandbox_wire::{
    Change, Checksum, FileChange, FileEntry, FileKind, FileList, FileRead, FileWrite, Move, Refusal, Remove,
};
use prost::Message as _;

use super::*;
use crate::{files::MAX_TRANSFERS, port};

const WINDOW: usize = limits::STREAM_WINDOW_BYTES as usize;
const CHUNK: usize = limits::CHUNK_BYTES as usize;

/// A worker on a directory of its own, and a host that takes what it says.
struct World {
    _dir: tempfile::TempDir,
    home: PathBuf,
    worker: Worker,
    queues: port::Queues,
    notes: mpsc::Receiver<Note>,
    next_op: u32,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("it can be made");
        fs::write(dir.path().join("secret"), "secret").expect("it can be written");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(&home, flags, Mode::empty()).expect("it is there");
        let (outbound, queues) = port::queues();
        let (tell, notes) = mpsc::channel(MAX_TRANSFERS + 1);
        let worker = Worker::new(descriptor, Exits { outbound, notes: tell });
        Self { _dir: dir, home, worker, queues, notes, next_op: 0 }
    }

    fn op(&mut self) -> u32 {
        self.next_op += 1;
        self.next_op
    }

    /// What was said since the last time; data and entries by value.
    fn said(&mut self) -> Vec<GuestMessage> {
        let mut said = Vec::new();
        while let Ok(outgoing) = self.queues.outgoing.try_recv() {
            if let Some(port::Outgoing::Frame(frame)) = self.queues.resolve(outgoing) {
                said.push(GuestMessage::parse(frame).expect("the worker is honest"));
            }
        }
        said
    }

    fn end(&mut self) -> Option<GuestMessage> {
        match self.notes.try_recv() {
            Ok(Note::Over(_, end)) => Some(end),
            _ => None,
        }
    }

    /// Lets the worker go on until it is done with everything that it may do, taking what it says.
    fn settle(&mut self) -> Vec<GuestMessage> {
        let mut said = Vec::new();
        while !self.worker.ready.is_empty() {
            self.worker.turn();
            said.extend(self.said());
        }
        said
    }

    fn begin_write(&mut self, path: &str, mode: u32, size: Option<u64>) -> u32 {
        let op = self.op();
        self.worker.take(Job::Write(op, FileWrite { path: path.into(), mode, size }, drained()));
        op
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Option<GuestMessage> {
        let op = self.begin_write(path, 0, Some(bytes.len() as u64));
        for piece in bytes.chunks(CHUNK) {
            self.worker.take(Job::Data(op, Bytes::copy_from_slice(piece)));
            self.said();
        }
        self.worker.take(Job::End(op, sum(bytes)));
        self.end()
    }

    fn read(&mut self, path: &str) -> Result<Vec<u8>, Refusal> {
        let (op, gate) = (self.op(), Gate::default());
        self.worker.take(Job::Read(op, FileRead { path: path.into() }, gate.clone()));
        let mut bytes = Vec::new();
        loop {
            let mut come = 0;
            for message in self.settle() {
                let GuestMessage::FileData(piece) = message else { panic!("it says {message:?}") };
                come += u32::try_from(piece.len()).expect("it is small");
                bytes.extend_from_slice(&piece);
            }
            match self.end() {
                Some(GuestMessage::FileDone(told)) => {
                    assert_eq!(told, sum(&bytes));
                    return Ok(bytes);
                }
                Some(end) => return Err(reason(Some(end))),
                None => {
                    assert!(come > 0, "it waits for a host that has granted all it has");
                    gate.grant(come).expect("it was sent");
                    self.worker.take(Job::More(op));
                }
            }
        }
    }

    /// The entries of a list, and the bodies that brought them.
    fn list(&mut self, path: &str, depth: u32) -> Result<(Vec<FileEntry>, Vec<usize>), Refusal> {
        let (op, gate) = (self.op(), Gate::default());
        self.worker.take(Job::List(op, FileList { path: path.into(), depth }, gate.clone()));
        let (mut entries, mut bodies) = (Vec::new(), Vec::new());
        loop {
            let mut come = 0;
            for message in self.settle() {
                let GuestMessage::FileEntries(some) = message else { panic!("it says {message:?}") };
                bodies.push(some.encoded_len());
                come += some.encoded_len();
                entries.extend(some.entries);
            }
            match self.end() {
                Some(GuestMessage::FileDone(_)) => return Ok((entries, bodies)),
                Some(end) => return Err(reason(Some(end))),
                None => {
                    assert!(come > 0 && come <= WINDOW, "{come}");
                    gate.grant(u32::try_from(come).expect("it is small")).expect("it was sent");
                    self.worker.take(Job::More(op));
                }
            }
        }
    }

    fn names(&mut self, path: &str, depth: u32) -> Vec<String> {
        let (entries, _) = self.list(path, depth).expect("it can be listed");
        let mut names: Vec<String> =
            entries.into_iter().map(|entry| String::from_utf8(entry.name).expect("a name")).collect();
        names.sort();
        names
    }

    fn change(&mut self, change: Option<Change>) -> Option<GuestMessage> {
        let op = self.op();
        self.worker.take(Job::Change(op, FileChange { change }));
        self.settle();
        self.end()
    }

    fn remove(&mut self, path: &str, recursive: bool) -> Option<GuestMessage> {
        self.change(Some(Change::Remove(Remove { path: path.into(), recursive })))
    }

    fn rename(&mut self, from: &str, to: &str) -> Option<GuestMessage> {
        self.change(Some(Change::Move(Move { from: from.into(), to: to.into() })))
    }

    fn make(&mut self, path: &str) -> Option<GuestMessage> {
        self.change(Some(Change::MakeDirectory(path.into())))
    }

    fn fifo(&self, name: &str) {
        let path = self.home.join(name);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
    }

    /// What lies in the home beside the names that were asked for.
    fn temporaries(&self) -> usize {
        let hidden = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".sbx-");
        fs::read_dir(&self.home).expect("it is there").flatten().filter(hidden).count()
    }
}

/// The gate of a host that has sent a window: whatever it is granted fits.
fn drained() -> Gate {
    let gate = Gate::default();
    gate.take(WINDOW);
    gate
}

fn sum(bytes: &[u8]) -> FileSum {
    let mut checksum = Checksum::default();
    checksum.add(bytes);
    FileSum { size: bytes.len() as u64, checksum: checksum.value() }
}

fn reason(end: Option<GuestMessage>) -> Refusal {
    match end {
        Some(GuestMessage::Refused(refused)) => {
            assert!(!refused.detail.is_empty() && !refused.detail.contains("secret: "), "{refused:?}");
            refused.reason()
        }
        other => panic!("it is not refused: {other:?}"),
    }
}

fn done() -> Option<GuestMessage> {
    Some(GuestMessage::FileDone(FileSum::default()))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250_u8).cycle().take(bytes).collect()
}

#[test]
fn files_of_any_size_come_back_byte_for_byte() {
    let mut world = World::new();
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, WINDOW - 1, WINDOW, WINDOW + 1, 1_000_003] {
        let bytes = pattern(size);
        assert_eq!(world.write("dir/ü 文件", &bytes), Some(GuestMessage::FileDone(sum(&bytes))), "{size}");
        assert_eq!(world.read("dir/ü 文件"), Ok(bytes), "{size}");
    }
    assert_eq!(world.names("", 9), ["dir", "dir/ü 文件"], "nothing is left beside it");
}

#[test]
fn a_path_that_leads_out_of_the_home_is_not_allowed_however_it_does() {
    let mut world = World::new();
    symlink("../secret", world.home.join("relative")).expect("a link");
    symlink(world.home.join("../secret"), world.home.join("absolute")).expect("a link");
    symlink("..", world.home.join("up")).expect("a link");
    symlink("/proc/self/root", world.home.join("magic")).expect("a link");
    fs::create_dir(world.home.join("dir")).expect("a directory");
    for path in ["relative", "absolute", "up/secret", "../secret", "dir/../../secret", "magic/etc/passwd"] {
        assert_eq!(world.read(path), Err(Refusal::NotAllowed), "{path}");
    }
    for path in ["up/new", "../new", "dir/../../new", "up/a/b/new", "magic/tmp/new"] {
        assert_eq!(reason(world.write(path, b"x")), Refusal::NotAllowed, "{path}");
        assert_eq!(reason(world.make(path)), Refusal::NotAllowed, "{path}");
        assert_eq!(reason(world.remove(path, true)), Refusal::NotAllowed, "{path}");
        assert_eq!(reason(world.rename("dir", path)), Refusal::NotAllowed, "{path}");
    }
    assert_eq!(world.list("up", 1).err(), Some(Refusal::NotAllowed));
    assert_eq!(fs::read_dir(world.home.join("..")).expect("it is there").count(), 2, "the home and the secret");
}

#[test]
fn a_link_that_stays_inside_is_followed_on_the_way_and_replaced_at_the_end() {
    let mut world = World::new();
    world.write("dir/file", b"old");
    symlink("dir", world.home.join("way")).expect("a link");
    symlink("dir/file", world.home.join("end")).expect("a link");
    assert_eq!(world.read("end"), Ok(b"old".to_vec()));
    assert_eq!(world.read("way/../way/file"), Ok(b"old".to_vec()));
    world.write("way/file", b"new");
    assert_eq!(world.read("end"), Ok(b"new".to_vec()));
    world.write("end", b"mine");
    assert_eq!((world.read("end"), world.read("dir/file")), (Ok(b"mine".to_vec()), Ok(b"new".to_vec())));
}

#[test]
fn paths_that_no_request_may_have_are_bad_requests() {
    let mut world = World::new();
    let long = ["x".repeat(256), "x/".repeat(2048) + "x"];
    for path in ["", "/etc/passwd", "a\0b", "a\nb", "a\x7f", &long[0], &long[1]] {
        assert_eq!(world.read(path), Err(Refusal::BadRequest), "{path:?}");
        assert_eq!(reason(world.write(path, b"")), Refusal::BadRequest, "{path:?}");
        assert_eq!(reason(world.make(path)), Refusal::BadRequest, "{path:?}");
        assert_eq!(reason(world.remove(path, true)), Refusal::BadRequest, "{path:?}");
    }
    for path in [".", "a/..", "a/."] {
        assert_eq!(reason(world.write(path, b"")), Refusal::BadRequest, "{path:?}");
        assert_eq!(reason(world.remove(path, true)), Refusal::BadRequest, "{path:?}");
    }
    assert_eq!(world.names("", 9), [""; 0]);
}

#[test]
fn what_is_no_regular_file_is_neither_read_nor_replaced_and_holds_nobody_up() {
    let mut world = World::new();
    world.fifo("fifo");
    let _socket = std::os::unix::net::UnixListener::bind(world.home.join("socket")).expect("a socket");
    fs::create_dir(world.home.join("dir")).expect("a directory");
    for path in ["fifo", "socket", "dir"] {
        assert_eq!(world.read(path), Err(Refusal::WrongKind), "{path}");
        assert_eq!(reason(world.write(path, b"x")), Refusal::WrongKind, "{path}");
    }
    world.write("file", b"x");
    assert_eq!(world.read("file/x"), Err(Refusal::WrongKind));
    assert_eq!(reason(world.write("file/x", b"x")), Refusal::WrongKind);
    assert_eq!(reason(world.write("new/", b"x")), Refusal::WrongKind);
    assert_eq!(world.list("file", 1).err(), Some(Refusal::WrongKind));
    assert_eq!(world.read("nothing"), Err(Refusal::NotFound));
    assert_eq!(world.temporaries(), 0);
}

#[test]
fn a_file_over_the_limit_is_refused_by_its_announcement_or_its_size() {
    let mut world = World::new();
    world.begin_write("file", 0, Some(limits::MAX_FILE_BYTES + 1));
    assert_eq!(reason(world.end()), Refusal::TooLarge);
    world.begin_write("file", 0, Some(limits::MAX_FILE_BYTES));
    assert!(world.end().is_none_or(|end| reason(Some(end)) == Refusal::NoSpace));
    let file = fs::File::create(world.home.join("sparse")).expect("a file");
    file.set_len(limits::MAX_FILE_BYTES + 1).expect("holes are cheap");
    assert_eq!(world.read("sparse"), Err(Refusal::TooLarge));
}

/// What a host sends of a file, what it says that it sent, and what it had announced.
type Sent = (&'static [&'static [u8]], FileSum, Option<u64>);

#[test]
fn bytes_that_are_not_those_that_were_sent_change_nothing() {
    let mut world = World::new();
    world.write("file", b"old");
    let (right, size) = (sum(b"bytes"), Some(5));
    let cases: [Sent; 5] = [
        (&[b"bytes"], FileSum { checksum: right.checksum ^ 1, ..right }, size),
        (&[b"byte"], right, None),
        (&[b"byte"], sum(b"byte"), size),
        (&[b"bytes", b"more"], sum(b"bytesmore"), size),
        (&[], right, None),
    ];
    for (pieces, told, announced) in cases {
        let op = world.begin_write("file", 0, announced);
        assert_eq!(world.temporaries(), 1);
        for piece in pieces {
            world.worker.take(Job::Data(op, Bytes::from_static(piece)));
        }
        world.worker.take(Job::End(op, told));
        assert_eq!(reason(world.end()), Refusal::Damaged, "{pieces:?}");
        assert!(world.end().is_none(), "it ends once");
        assert_eq!((world.read("file"), world.temporaries()), (Ok(b"old".to_vec()), 0));
    }
}

#[test]
fn a_writing_that_is_called_off_or_loses_its_connection_leaves_nothing_behind() {
    let mut world = World::new();
    let op = world.begin_write("a", 0, None);
    world.worker.take(Job::Data(op, Bytes::from_static(b"x")));
    world.worker.take(Job::Cancel(op));
    assert_eq!(reason(world.end()), Refusal::Cancelled);
    for name in ["b", "c"] {
        world.begin_write(name, 0, None);
    }
    world.worker.take(Job::Read(90, FileRead { path: "nothing".into() }, Gate::default()));
    assert_eq!(world.temporaries(), 2);
    world.worker.take(Job::Clear);
    assert!(matches!(world.notes.try_recv(), Ok(Note::Over(90, _))));
    assert!(matches!(world.notes.try_recv(), Ok(Note::Cleared)));
    assert_eq!(world.names("", 9), [""; 0]);
}

#[test]
fn the_temporary_that_a_program_has_put_something_else_in_place_of_is_not_taken_for_the_file() {
    let mut world = World::new();
    let op = world.begin_write("file", 0, None);
    let temporary = fs::read_dir(&world.home).expect("it is there").flatten().next().expect("it is there").path();
    fs::remove_file(&temporary).expect("it is there");
    fs::write(&temporary, "forged").expect("its name is free");
    world.worker.take(Job::End(op, sum(b"")));
    assert_eq!(reason(world.end()), Refusal::NotFound);
    assert_eq!(world.read("file"), Err(Refusal::NotFound));
    assert!(temporary.exists(), "it is the program's");
}

#[test]
fn a_reader_beside_a_replacement_sees_the_old_file_or_the_new_one_whole() {
    let mut world = World::new();
    let (old, new) = (vec![b'o'; 100_000], vec![b'n'; 100_000]);
    world.write("file", &old);
    let (path, over) = (world.home.join("file"), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let seen = fs::read(&path).expect("it is never missing");
                assert!(seen.len() == 100_000 && seen.iter().all(|byte| *byte == seen[0]), "a part of it");
            }
        });
        for bytes in [&new, &old].into_iter().cycle().take(40) {
            assert!(matches!(world.write("file", bytes), Some(GuestMessage::FileDone(_))));
        }
        over.store(true, Ordering::SeqCst);
        reader.join().expect("it saw no part");
    });
}

#[test]
fn a_file_has_the_mode_that_was_asked_for_and_no_rights_of_its_owner_for_others() {
    let mut world = World::new();
    for (asked, got) in [(0, 0o644), (0o600, 0o600), (0o755, 0o755), (0o6777, 0o777), (0o100_640, 0o640)] {
        let op = world.begin_write("file", asked, None);
        world.worker.take(Job::End(op, sum(b"")));
        assert!(matches!(world.end(), Some(GuestMessage::FileDone(_))));
        let mode = fs::metadata(world.home.join("file")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, got, "{asked:o}");
    }
}

#[test]
fn what_was_written_is_granted_again_in_halves_of_the_window() {
    let mut world = World::new();
    let op = world.begin_write("file", 0, None);
    let granted = |world: &mut World| -> Vec<u32> {
        world.worker.take(Job::Data(op, Bytes::from(vec![0; CHUNK])));
        let credit = |message| match message {
            GuestMessage::Credit(credit) => credit.data_bytes,
            other => panic!("it says {other:?}"),
        };
        world.said().into_iter().map(credit).collect()
    };
    let grants: Vec<Vec<u32>> = (0..4).map(|_| granted(&mut world)).collect();
    assert_eq!(grants, [vec![], vec![GRANT_BYTES], vec![], vec![GRANT_BYTES]]);
}

#[test]
fn a_reading_waits_for_its_host_and_holds_up_no_other() {
    let mut world = World::new();
    world.write("file", &pattern(2 * WINDOW));
    let gates = [Gate::default(), Gate::default()];
    for (op, gate) in (100..).zip(&gates) {
        world.worker.take(Job::Read(op, FileRead { path: "file".into() }, gate.clone()));
    }
    let sizes = |said: Vec<GuestMessage>| said.len() * CHUNK;
    assert_eq!(sizes(world.settle()), 2 * WINDOW, "a window of each");
    assert!(world.end().is_none());
    gates[1].grant(limits::STREAM_WINDOW_BYTES).expect("it was sent");
    world.worker.take(Job::More(101));
    assert_eq!(sizes(world.settle()), WINDOW);
    world.worker.take(Job::Cancel(100));
    assert_eq!(reason(world.end()), Refusal::Cancelled);
    assert_eq!(world.said(), []);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_ends_where_it_ends() {
    let mut world = World::new();
    world.write("file", &pattern(2 * WINDOW));
    let gate = Gate::default();
    world.worker.take(Job::Read(100, FileRead { path: "file".into() }, gate.clone()));
    world.settle();
    fs::File::options().write(true).open(world.home.join("file")).and_then(|file| file.set_len(5)).expect("it shrinks");
    gate.grant(1).expect("it was sent");
    world.worker.take(Job::More(100));
    assert_eq!(world.settle(), []);
    assert_eq!(world.end(), Some(GuestMessage::FileDone(sum(&pattern(2 * WINDOW)[..WINDOW]))));
}
