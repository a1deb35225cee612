//! What the kernel says of want: how long tasks waited for a CPU, and how many it killed for memory.
//!
//! Pressure is that of this process's control group where there is one, else of the whole host. Kills are those of
//! the group alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the figures stand; found once, read often.
#[derive(Debug, Clone)]
pub struct ResourcePressure {
    cpu: Option<PathBuf>,
    memory_events: Option<PathBuf>,
}

impl ResourcePressure {
    /// Finds the files of this process's control group; one that cannot be read is not there.
    pub fn discover() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::discover_below(Path::new("/"), &groups)
    }

    /// The same below another root.
    fn discover_below(root: &Path, groups: &str) -> Self {
        let first = |paths: Vec<PathBuf>| paths.into_iter().find(|path| fs::read_to_string(path).is_ok());
        let mut cpu = candidate_files(root, groups, "", "cpu.pressure");
        cpu.push(root.join("proc/pressure/cpu"));
        // The local count: `memory.events` counts what happens in groups below as well, the machine's what happens
        // anywhere, and neither says anything about a process of this group.
        let mut kills = candidate_files(root, groups, "", "memory.events.local");
        kills.extend(candidate_files(root, groups, "memory", "memory.oom_control"));
        Self { cpu: first(cpu), memory_events: first(kills) }
    }

    /// Time during which at least one task waited for a CPU, since the machine or the group began; none where the
    /// kernel does not keep it (PSI, Linux 4.20).
    pub fn cpu_wait(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.cpu.as_ref()?).ok()?;
        let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
        let total = some.split_ascii_whitespace().find_map(|field| field.strip_prefix("total="))?;
        total.parse().ok().map(Duration::from_micros)
    }

    /// Processes of this control group itself that the kernel has killed for want of memory; none where it does not
    /// keep that (the root group, Linux before 5.2).
    pub fn oom_kills(&self) -> Option<u64> {
        let text = fs::read_to_string(self.memory_events.as_ref()?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
    }
}

/// Where `file` may stand for a hierarchy: empty for the unified one (cgroup v2), else a controller of v1.
///
/// In a container the path is often the host's while only the own group is mounted, as the root.
fn candidate_files(root: &Path, groups: &str, controller: &str, file: &str) -> Vec<PathBuf> {
    let is_hierarchy = |names: &str| match controller {
        "" => names.is_empty(),
        v1_controller => names.split(',').any(|name| name == v1_controller),
    };
    let parts = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let own =
        parts.filter(|(names, _)| is_hierarchy(names)).map(|(_, path)| path.trim_start_matches('/')).next();
    let Some(own) = own else { return Vec::new() };
    let mount = root.join("sys/fs/cgroup").join(controller);
    vec![mount.join(own).join(file), mount.join(file)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: &str = "some avg10=2.51 avg60=3.30 avg300=2.40 total=22252844\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_unified_group_comes_before_the_host() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/pressure/cpu", CPU);
        write(root.path(), "proc/vmstat", "nr_free_pages 5\noom_kill 9\n");
        let host = ResourcePressure::discover_below(root.path(), "0::/app\n");
        assert_eq!(host.cpu_wait(), Some(Duration::from_micros(22_252_844)));
        assert_eq!(host.oom_kills(), None, "what the kernel kills elsewhere does not count");
        write(root.path(), "sys/fs/cgroup/app/cpu.pressure", "some avg10=0.00 total=7\n");
        let below = "low 0\noom 2\noom_kill 9\noom_group_kill 0\n";
        write(root.path(), "sys/fs/cgroup/app/memory.events", below);
        write(root.path(), "sys/fs/cgroup/app/memory.events.local", &below.replace('9', "3"));
        let group = ResourcePressure::discover_below(root.path(), "0::/app\n");
        assert_eq!(group.cpu_wait(), Some(Duration::from_micros(7)));
        assert_eq!(group.oom_kills(), Some(3));
    }

    #[test]
    fn a_container_sees_its_group_as_the_root() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "sys/fs/cgroup/memory/memory.oom_control", "under_oom 0\noom_kill 4\n");
        let group = ResourcePressure::discover_below(root.path(), "4:cpu,memory:/docker/abc\n0::/\n");
        assert_eq!(group.oom_kills(), Some(4));
        assert_eq!(group.cpu_wait(), None);
    }

    #[test]
    fn a_kernel_without_figures_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let nothing = ResourcePressure::discover_below(root.path(), "garbage");
        assert_eq!((nothing.cpu_wait(), nothing.oom_kills()), (None, None));
    }
}
