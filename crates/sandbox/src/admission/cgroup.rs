//! Control groups: the memory and CPU that a container leaves to this process.
//!
//! Limits hold for a group and all below it, so those of the parents count too, as far up as they can be seen. Version 2 has one
//! hierarchy, version 1 has one for each controller, and a machine can have both at once.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// From this size on a limit of version 1 means "none": the kernel writes the largest number of whole pages.
const V1_UNLIMITED_BYTES: u64 = 1 << 62;

const BYTES_PER_MIB: u64 = 1024 * 1024;

/// Names of the files of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A group that limits this process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    dir: PathBuf,
}

/// The groups that this process is in, with all around them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cgroups {
    memory: Vec<Group>,
    cpu: Vec<Group>,
}

impl Cgroups {
    pub(super) fn of_this_process() -> Self {
        let read = |file| fs::read_to_string(file).unwrap_or_default();
        Self::find(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
    }

    /// The tightest limit of memory.
    pub(super) fn memory_limit_mib(&self) -> Option<u64> {
        self.memory.iter().filter_map(Group::memory_limit_bytes).min().map(|bytes| bytes / BYTES_PER_MIB)
    }

    /// How much memory the tightest group still allows.
    pub(super) fn memory_room_mib(&self) -> Option<u64> {
        self.memory.iter().filter_map(Group::memory_room_bytes).min().map(|bytes| bytes / BYTES_PER_MIB)
    }

    /// The tightest limit of CPU time, in thousandths of a core.
    pub(super) fn cpu_limit_millis(&self) -> Option<u64> {
        self.cpu.iter().filter_map(Group::cpu_limit_millis).min()
    }

    fn find(memberships: &str, mounts: &str) -> Self {
        Self { memory: groups("memory", memberships, mounts), cpu: groups("cpu", memberships, mounts) }
    }
}

impl Group {
    fn memory_limit_bytes(&self) -> Option<u64> {
        match self.version {
            Version::V2 => self.number("memory.max"),
            Version::V1 => self.number("memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED_BYTES),
        }
    }

    fn memory_room_bytes(&self) -> Option<u64> {
        let limit = self.memory_limit_bytes()?;
        let (used, idle_files) = match self.version {
            Version::V2 => ("memory.current", "inactive_file"),
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
        };
        // Pages of files that nobody has looked at lately are given up before the limit bites.
        let idle = self.read("memory.stat").and_then(|stat| field(&stat, idle_files)).unwrap_or(0);
        Some(limit.saturating_sub(self.number(used)?.saturating_sub(idle)))
    }

    fn cpu_limit_millis(&self) -> Option<u64> {
        let (quota, period): (u64, u64) = match self.version {
            Version::V2 => {
                let text = self.read("cpu.max")?;
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            // A quota of -1 is none, and no u64.
            Version::V1 => (self.number("cpu.cfs_quota_us")?, self.number("cpu.cfs_period_us")?),
        };
        quota.checked_mul(1000)?.checked_div(period)
    }

    /// `None` for "max" too.
    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(file)).ok()
    }
}

/// The groups that have `controller`, from that of this process up to the mount's own.
fn groups(controller: &str, memberships: &str, mounts: &str) -> Vec<Group> {
    mounts.lines().filter_map(|line| mounted(controller, memberships, line)).flatten().collect()
}

/// Those under one mount: `id parent dev root point options … - type source super-options`.
fn mounted(controller: &str, memberships: &str, mount: &str) -> Option<Vec<Group>> {
    let (place, kind) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, point) = (place.next()?, Path::new(place.next()?));
    let mut kind = kind.split(' ');
    let version = match (kind.next()?, kind.nth(1)?) {
        ("cgroup2", _) => Version::V2,
        ("cgroup", options) if options.split(',').any(|option| option == controller) => Version::V1,
        _ => return None,
    };
    let path = membership(version, controller, memberships)?;
    // A group that is not below what is mounted cannot be seen, only what is around it.
    let below = Path::new(path).strip_prefix(root).unwrap_or_else(|_not_below| Path::new(""));
    let dir = point.join(below);
    let up = dir.ancestors().take_while(|dir| dir.starts_with(point));
    Some(up.map(|dir| Group { version, dir: dir.into() }).collect())
}

/// The path of this process in a hierarchy: `id:controllers:path`, where version 2 names no controllers.
fn membership<'a>(version: Version, controller: &str, memberships: &'a str) -> Option<&'a str> {
    memberships.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let found = match version {
            Version::V1 => controllers.split(',').any(|name| name == controller),
            Version::V2 => controllers.is_empty(),
        };
        found.then_some(path)
    })
}

fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of groups, as directories with files.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().expect("it has one")).expect("it is ours");
            fs::write(path, text).expect("it is ours");
        }

        /// A line of mountinfo for the directory `point` of this tree.
        fn mount(&self, root: &str, point: &str, kind: &str) -> String {
            format!("31 23 0:28 {root} {}/{point} rw,relatime shared:9 - {kind}\n", self.0.path().display())
        }
    }

    #[test]
    fn the_tightest_of_a_group_and_its_parents_counts() {
        let tree = Tree::new();
        tree.write("memory.max", "max\n");
        tree.write("pod/memory.max", "1073741824\n");
        tree.write("pod/memory.current", "943718400\n");
        tree.write("pod/memory.stat", "anon 1\ninactive_file 104857600\n");
        tree.write("pod/cpu.max", "150000 100000\n");
        tree.write("pod/box/memory.max", "2147483648\n");
        tree.write("pod/box/memory.current", "0\n");
        tree.write("pod/box/cpu.max", "max 100000\n");
        let cgroups = Cgroups::find("0::/pod/box\n", &tree.mount("/", "", "cgroup2 cgroup2 rw"));
        assert_eq!(cgroups.memory_limit_mib(), Some(1024));
        assert_eq!(cgroups.memory_room_mib(), Some(1024 - 900 + 100));
        assert_eq!(cgroups.cpu_limit_millis(), Some(1500));
    }

    #[test]
    fn version_1_is_read_in_the_hierarchy_of_each_controller() {
        let tree = Tree::new();
        tree.write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        tree.write("memory/box/memory.limit_in_bytes", "536870912\n");
        tree.write("memory/box/memory.usage_in_bytes", "268435456\n");
        tree.write("memory/box/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\n");
        tree.write("cpu/cpu.cfs_quota_us", "-1\n");
        tree.write("cpu/cpu.cfs_period_us", "100000\n");
        tree.write("cpu/other/cpu.cfs_quota_us", "50000\n");
        tree.write("cpu/other/cpu.cfs_period_us", "100000\n");
        let mounts = [
            tree.mount("/", "memory", "cgroup cgroup rw,memory"),
            tree.mount("/", "cpuset", "cgroup cgroup rw,cpuset"),
            tree.mount("/", "cpu", "cgroup cgroup rw,cpu,cpuacct"),
        ];
        let memberships = "4:memory:/box\n2:cpu,cpuacct:/other\n1:name=systemd:/\n0::/\n";
        let cgroups = Cgroups::find(memberships, &mounts.concat());
        assert_eq!(cgroups.memory_limit_mib(), Some(512));
        assert_eq!(cgroups.memory_room_mib(), Some(257));
        assert_eq!(cgroups.cpu_limit_millis(), Some(500));
    }

    #[test]
    fn a_container_sees_its_own_group_where_the_hierarchy_is_mounted() {
        let tree = Tree::new();
        tree.write("memory.max", "1048576\n");
        let inside = Cgroups::find("0::/docker/abc\n", &tree.mount("/docker/abc", "", "cgroup2 cgroup rw"));
        assert_eq!(inside.memory_limit_mib(), Some(1));
        let unseen = Cgroups::find("0::/../outside\n", &tree.mount("/docker/abc", "", "cgroup2 cgroup rw"));
        assert_eq!(unseen.memory_limit_mib(), Some(1));
    }

    #[test]
    fn no_groups_are_no_limits() {
        let cgroups = Cgroups::find("", "nonsense\n1 2 3\n");
        assert_eq!(cgroups, Cgroups::default());
        assert_eq!((cgroups.memory_limit_mib(), cgroups.cpu_limit_millis()), (None, None));
    }
}
