//! A host that runs out of something.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use exec_sandbox::{Error, ErrorKind, Scheduler, SchedulerConfig};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    leftovers,
    world::{World, chain, faulty, serves},
};

/// A small file system, there until it is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    /// Mounts one at `path`. `None`, and a word about it, for a user who may not.
    pub(crate) fn mount(path: &Path, options: &CStr) -> Option<Self> {
        fs::create_dir_all(path).expect("it can be made");
        match mount("faults", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options) {
            Ok(()) => Some(Self(path.into())),
            Err(error) => {
                let _ = writeln!(io::stderr(), "skipped: mounting a small file system: {error}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// The soft limit of open files, lowered until it is dropped.
struct FewDescriptors(Rlimit);

impl FewDescriptors {
    fn below(number: u64) -> Self {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(number), ..before }).expect("it may be lowered");
        Self(before)
    }
}

impl Drop for FewDescriptors {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::Nofile, self.0);
    }
}

#[track_caller]
fn assert_host(error: &Error, said: &str) {
    assert_eq!((error.kind(), error.kind().is_transient()), (ErrorKind::Host, false), "{}", chain(error));
    assert!(chain(error).contains(said), "{said:?} is not said in: {}", chain(error));
}

#[tokio::test]
async fn a_disk_that_is_full_fails_the_run_wherever_it_is_met() {
    let world = World::in_good_order();
    // The root and its lock, then directory, lock, record, socket and the process's name: the seventh is the last that a VM makes.
    let Some(_small) = Small::mount(&world.run_dir(), c"size=64k,nr_inodes=32,mode=0700") else { return };
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let fillers: Vec<PathBuf> = (0..)
        .map(|number| world.run_dir().join(format!("filler-{number}")))
        .take_while(|path| File::create_new(path).is_ok())
        .collect();
    let mut failures = 0;
    for filler in fillers {
        match scheduler.run(faulty()).await {
            Ok(_served) => break,
            Err(error) => assert_host(&error, "No space left on device"),
        }
        world.assert_empty();
        failures += 1;
        fs::remove_file(filler).expect("it is there");
    }
    assert_eq!(failures, 5, "a VM makes so many files, and each was once the one too many");
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}

#[tokio::test]
async fn a_disk_without_room_for_a_name_fails_the_run_and_ends_the_process() {
    let world = World::in_good_order();
    let Some(_small) = Small::mount(&world.run_dir(), c"size=64k,mode=0700") else { return };
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let filler = world.run_dir().join("filler");
    let mut full = File::create_new(&filler).expect("it is new");
    while full.write(&[0; 4096]).is_ok() {}
    drop(full);
    let error = scheduler.run(faulty()).await.expect_err("there is no room");
    assert_host(&error, "No space left on device");
    world.assert_empty();
    fs::remove_file(filler).expect("it is there");
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}

/// A configuration of this world in which the image is not in its place, and could be fetched from where it is.
fn without_image(world: &World) -> SchedulerConfig {
    let config = world.config();
    let published = config.images_dir.as_ref().map(|dir| dir.display().to_string());
    SchedulerConfig { assets_url: published, images_dir: Some(world.run_dir().with_extension("images")), ..config }
}

#[tokio::test]
async fn an_image_that_is_not_there_is_fetched_by_the_start_if_it_may() {
    let world = World::in_good_order();
    let unasked = SchedulerConfig { auto_download_assets: false, ..without_image(&world) };
    let offline = SchedulerConfig { offline: true, ..without_image(&world) };
    for config in [unasked, offline] {
        let error = Scheduler::start(config).await.expect_err("there is no image");
        assert_eq!(error.kind(), ErrorKind::AssetNotFound, "{}", chain(&error));
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("sbx image pull")), "{error:?}");
    }
    let scheduler = Scheduler::start(without_image(&world)).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    serves(&scheduler).await;
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_disk_without_room_for_an_image_is_told_and_with_room_the_fetch_goes_on() {
    let world = World::in_good_order();
    let config = without_image(&world);
    let images = config.images_dir.clone().expect("it is named");
    let Some(_small) = Small::mount(&images, c"size=64k,mode=0700") else { return };
    let filler = images.join("filler");
    let mut full = File::create_new(&filler).expect("it is new");
    while full.write(&[0; 4096]).is_ok() {}
    drop(full);
    let error = Scheduler::start(config.clone()).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::AssetDownload, "{}", chain(&error));
    assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
    assert!(error.remedy().is_some_and(|remedy| remedy.starts_with("make room")), "{error:?}");
    fs::remove_file(filler).expect("it is there");
    let scheduler = Scheduler::start(config).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    serves(&scheduler).await;
    scheduler.close().await.expect("nothing is left");
}

#[tokio::test]
async fn a_run_directory_that_cannot_be_used_is_the_hosts_fault_and_named() {
    let world = World::in_good_order();
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    fs::remove_dir_all(world.run_dir()).expect("it is ours");
    fs::write(world.run_dir(), "not a directory").expect("it is new");
    let error = scheduler.run(faulty()).await.expect_err("it is no directory");
    assert_host(&error, &world.run_dir().display().to_string());
    fs::remove_file(world.run_dir()).expect("it is there");
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}

#[tokio::test]
async fn too_few_descriptors_fail_the_run_wherever_they_end() {
    let world = World::in_good_order();
    let scheduler = world.scheduler().await;
    serves(&scheduler).await;
    let before = leftovers::descriptors();
    let open: usize = before.values().sum();
    let mut failures = 0;
    for number in open as u64 - 1.. {
        let few = FewDescriptors::below(number);
        let result = scheduler.run(faulty()).await;
        drop(few);
        world.assert_empty();
        match result {
            Ok(_served) => break,
            Err(error) => assert!(matches!(error.kind(), ErrorKind::Host | ErrorKind::Vm), "{}", chain(&error)),
        }
        failures += 1;
    }
    assert!(failures > 10, "a VM has so many descriptors, and each was once the one too many");
    serves(&scheduler).await;
    world.end(&scheduler, &before).await;
}
