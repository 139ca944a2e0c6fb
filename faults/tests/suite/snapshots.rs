//! Guests that are saved and copied, where one of both goes wrong. A caller's program runs all the same, unless its VM could not even boot.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};

use exec_sandbox::{Origin, Outcome, Scheduler, SchedulerConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    host::Small,
    leftovers,
    world::{World, chain, closes_down_to, eventually, faulty, serves},
};

/// Long enough for a fake in good order on a busy machine; what hangs is waited for as long.
const BOOT_TIMEOUT: Duration = Duration::from_secs(3);

/// A world whose VMs are saved and copied.
struct Saving {
    world: World,
    scheduler: Scheduler,
    before: BTreeMap<String, usize>,
}

impl Saving {
    async fn start() -> Self {
        let world = World::in_good_order();
        // What stays with the process, as the spawner's thread, is made by this one.
        let first = world.scheduler().await;
        serves(&first).await;
        first.close().await.expect("nothing is left");
        drop(first);
        let before = leftovers::descriptors();
        let scheduler = Self::scheduler(&world).await;
        Self { world, scheduler, before }
    }

    async fn scheduler(world: &World) -> Scheduler {
        let config = SchedulerConfig {
            snapshots: true,
            snapshot_dir: Some(snapshot_dir(world)),
            // Each test makes what another failure is about.
            snapshot_retry_after: Duration::ZERO,
            boot_timeout: BOOT_TIMEOUT,
            ..world.config()
        };
        Scheduler::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    /// Runs a program in the VM that plays scenes, which works, and leaves nothing.
    async fn run(&self) -> Outcome {
        let outcome = self.scheduler.run(faulty()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(&outcome.stdout[..], b"echo $((6 * 7))");
        self.world.assert_empty();
        outcome
    }

    /// Runs one that boots and is saved.
    async fn donates(&self) {
        let timing = self.run().await.timing;
        assert!(timing.origin == Origin::Cold && timing.snapshot.is_some(), "{timing:?}");
    }

    /// Runs one that is a copy.
    async fn copies(&self) {
        let timing = self.run().await.timing;
        assert!(timing.origin == Origin::Snapshot && timing.snapshot.is_none(), "{timing:?}");
    }

    /// What is set aside.
    fn set_aside(&self) -> usize {
        names(&snapshot_dir(&self.world).join("quarantine")).len()
    }

    /// Proves that VMs of another sort are saved and copied, and that nothing is left, in the process or in the store.
    async fn end(self) -> World {
        let Self { world, scheduler, before } = self;
        serves(&scheduler).await;
        serves(&scheduler).await;
        scheduler.close().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        world.assert_empty();
        drop(scheduler);
        closes_down_to(&before).await;
        let store = snapshot_dir(&world);
        assert_eq!(names(&store.join("drafts")), [""; 0], "drafts are left");
        for name in names(&store.join("memories")) {
            let links = store.join("memories").join(&name).metadata().expect("it is there").nlink();
            assert_eq!(links, 2, "{name} is nobody's memory");
        }
        world
    }
}

fn snapshot_dir(world: &World) -> PathBuf {
    world.run_dir().with_file_name("snapshots")
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.map(|entry| entry.expect("it can be read").file_name()));
    entries.map(|names| names.map(|name| name.to_string_lossy().into_owned()).collect()).unwrap_or_default()
}

/// What comes of copies that play `scenes`, one after the other: each is set aside, and replaced by what is saved anew.
async fn copies_that_fail(scenes: &[&[&str]]) {
    let saving = Saving::start().await;
    saving.donates().await;
    saving.copies().await;
    for (failures, steps) in (1..).zip(scenes) {
        saving.world.install_for("copy", steps);
        saving.donates().await;
        // Two are kept.
        assert_eq!(saving.set_aside(), failures.min(2), "{steps:?}");
        saving.world.install(&[]);
        saving.copies().await;
    }
    saving.end().await;
}

/// What comes of guests that play `scenes` while they are saved: the program runs in them, or in another that is not saved.
async fn donors_that_fail(scenes: &[(&[&str], bool)]) {
    for (steps, goes_on) in scenes {
        let saving = Saving::start().await;
        saving.world.install_for("donor", steps);
        let timing = saving.run().await.timing;
        assert_eq!((timing.origin, timing.snapshot.is_some()), (Origin::Cold, *goes_on), "{steps:?}");
        saving.world.install(&[]);
        saving.donates().await;
        saving.copies().await;
        assert_eq!(saving.set_aside(), 0);
        saving.end().await;
    }
}

#[tokio::test]
async fn the_first_vm_is_saved_and_all_others_are_copies_of_it_in_later_processes_too() {
    let saving = Saving::start().await;
    saving.donates().await;
    for _ in 0..5 {
        saving.copies().await;
    }
    let Saving { world, scheduler, before } = saving;
    scheduler.close().await.expect("nothing is left");
    drop(scheduler);
    let scheduler = Saving::scheduler(&world).await;
    let saving = Saving { world, scheduler, before };
    saving.copies().await;
    saving.end().await;
}

#[tokio::test]
async fn a_copy_whose_qemu_refuses_any_of_its_commands_is_replaced() {
    let (mut scenes, numbers) = (Vec::new(), ["answer 0", "answer 1", "answer 2", "answer 3", "answer 4", "answer 5"]);
    for (before, after) in numbers.into_iter().zip(numbers.into_iter().rev()) {
        scenes.push(["greet", "accept", before, "decline not like this", after, "hang"]);
    }
    let scenes: Vec<&[&str]> = scenes.iter().map(|scene| &scene[..]).collect();
    copies_that_fail(&scenes).await;
}

#[tokio::test]
async fn a_copy_that_never_answers_is_given_up_in_time_and_replaced() {
    copies_that_fail(&[
        &["greet", "accept", "answer 6", "load", "hang"],
        &["greet", "accept", "answer 5", "hang"],
        &["hang"],
        &["greet", "accept", "answer 6", "load", "pongs forever"],
    ])
    .await;
}

#[tokio::test]
async fn a_copy_that_dies_or_babbles_is_replaced() {
    copies_that_fail(&[
        &["say cannot set up guest memory", "exit 1"],
        &["greet", "accept", "answer 3", "signal 6"],
        &["greet", "accept", "answer 6", "load", "exit 0"],
        &["greet", "accept", "answer 6", "load", "await-seed", "exit 1"],
        &["greet", "accept", "answer 6", "load", "await-seed", "half-hello", "close-channel"],
        &["greet", "accept", "answer 6", "load", "garbage 4096"],
        &["greet", "accept", "answer 6", "load", "hello 7"],
        &["greet", "close-monitor", "accept", "hang"],
    ])
    .await;
}

#[tokio::test]
async fn a_guest_that_cannot_be_saved_goes_on_and_the_next_one_is_saved() {
    let rehearsed = ["greet", "accept", "hello", "rehearse"];
    let goes_on = ["answer 1", "await-seed", "hello", "serve"];
    let failures: [&[&str]; 6] = [
        &["answer 2", "decline no room"],
        &["decline no such capability", "answer 2"],
        &["answer 3", "state 10", "migration failed"],
        &["answer 3", "state 0", "migration completed"],
        // The host takes no more than 8 MiB.
        &["answer 3", "state 9000000", "migration completed"],
        &["answer 3", "state 100", "answer 3", "migration active", "migration cancelled"],
    ];
    let scenes: Vec<Vec<&str>> = failures.iter().map(|failure| [&rehearsed, *failure, &goes_on].concat()).collect();
    let scenes: Vec<(&[&str], bool)> = scenes.iter().map(|scene| (&scene[..], true)).collect();
    donors_that_fail(&scenes).await;
}

#[tokio::test]
async fn a_guest_that_does_not_become_another_is_not_copied() {
    // It greets as the one that it was before, whatever its seed is.
    donors_that_fail(&[(&["greet", "accept", "hello", "rehearse", "save", "hello", "serve"], true)]).await;
}

#[tokio::test]
async fn a_guest_whose_rehearsal_comes_to_nothing_is_not_saved_and_goes_on() {
    let goes_on = ["await-ack", "await-ping", "answer 1", "await-seed", "hello", "serve"];
    for ending in ["done exit=1", "refuse not now"] {
        let steps = [&["greet", "accept", "hello", "await-exec", ending][..], &goes_on].concat();
        donors_that_fail(&[(&steps, true)]).await;
    }
}

#[tokio::test]
async fn a_guest_that_hangs_while_it_is_saved_is_replaced_by_one_that_boots() {
    donors_that_fail(&[
        (&["greet", "accept", "hello", "await-exec", "hang"], false),
        (&["greet", "accept", "hello", "rehearse", "hang"], false),
        (&["greet", "accept", "hello", "rehearse", "answer 3", "hang"], false),
        (&["greet", "accept", "hello", "rehearse", "save", "hang"], false),
    ])
    .await;
}

#[tokio::test]
async fn a_guest_that_dies_while_it_is_saved_is_replaced_by_one_that_boots() {
    donors_that_fail(&[
        (&["greet", "accept", "hello", "await-exec", "exit 1"], false),
        (&["greet", "accept", "hello", "rehearse", "answer 2", "exit 1"], false),
        (&["greet", "accept", "hello", "rehearse", "answer 3", "state 10", "signal 6"], false),
        (&["greet", "accept", "hello", "rehearse", "save", "exit 0"], false),
        (&["greet", "accept", "hello", "rehearse", "save", "await-seed", "close-channel"], false),
        (&["greet", "accept", "hello", "rehearse", "close-monitor"], false),
    ])
    .await;
}

#[tokio::test]
async fn a_guest_that_does_not_boot_is_no_matter_of_snapshots() {
    let saving = Saving::start().await;
    saving.world.install_for("donor", &["say no kernel", "exit 1"]);
    let error = saving.scheduler.run(faulty()).await.expect_err("it does not boot");
    assert!(error.kind().is_transient() && chain(&error).contains("saying: no kernel"), "{}", chain(&error));
    saving.world.assert_empty();
    saving.world.install(&[]);
    saving.donates().await;
    saving.end().await;
}

#[tokio::test]
async fn a_disk_that_is_full_while_the_memory_is_copied_leaves_no_draft_and_the_vm_goes_on() {
    let Saving { world, scheduler, before } = Saving::start().await;
    drop(scheduler);
    let store = snapshot_dir(&world);
    // The memory and 4 MiB are asked for ahead, and then somebody else takes them.
    let Some(small) = Small::mount(&store, c"size=140m,mode=0700") else { return };
    let scheduler = Saving::scheduler(&world).await;
    let saving = Saving { world, scheduler, before };
    let steps =
        ["greet", "accept", "memory 1000000", "hello", "signal 19", "rehearse", "save", "await-seed", "hello", "serve"];
    saving.world.install_for("donor", &steps);
    let filler = store.join("filler");
    let fill = async {
        let donor = saving.world.process(|process| process.state == 'T').await;
        let mut full = File::create_new(&filler).expect("it is new");
        while full.write(&[0; 4096]).is_ok() {}
        // Room for the state, and not for the memory.
        let length = full.metadata().expect("it is open").len();
        full.set_len(length - 64 * 1024).expect("it is ours");
        kill_process(Pid::from_raw(donor.pid).expect("it is an id"), Signal::CONT).expect("it is ours");
    };
    let (outcome, ()) = tokio::join!(saving.run(), fill);
    assert_eq!((outcome.timing.origin, outcome.timing.snapshot.is_some()), (Origin::Cold, true));
    assert_eq!(names(&store.join("drafts")), [""; 0]);
    assert_eq!(names(&store.join("memories")), [""; 0]);
    saving.world.install(&[]);
    // Nobody tries where there is no room.
    let timing = saving.run().await.timing;
    assert_eq!((timing.origin, timing.snapshot), (Origin::Cold, None));
    fs::remove_file(filler).expect("it is there");
    saving.donates().await;
    saving.copies().await;
    let world = saving.end().await;
    // It cannot be removed while something is mounted in it.
    drop(small);
    drop(world);
}

#[tokio::test]
async fn a_caller_who_leaves_while_a_guest_is_saved_or_copied_leaves_nothing_and_others_are_served() {
    let saving = Saving::start().await;
    let leaves = async || {
        tokio::select! {
            outcome = saving.scheduler.run(faulty()) => panic!("it hangs: {outcome:?}"),
            _ = saving.world.process(|process| process.state == 'T') => {}
        }
        saving.world.becomes_empty().await;
        saving.world.install(&[]);
    };
    saving.world.install_for("donor", &["greet", "accept", "hello", "rehearse", "answer 2", "signal 19"]);
    leaves().await;
    // The draft goes with the task that has made it.
    eventually("no draft", || names(&snapshot_dir(&saving.world).join("drafts")).is_empty().then_some(())).await;
    saving.donates().await;
    saving.world.install_for("copy", &["greet", "accept", "answer 3", "signal 19"]);
    leaves().await;
    saving.copies().await;
    assert_eq!(saving.set_aside(), 0, "nothing is wrong with it");
    saving.end().await;
}
