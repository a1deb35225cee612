//! How much memory this process and its children may use, the smaller of host and cgroup.

use std::path::{Path, PathBuf};

/// Bytes of memory allowed by the host and by the cgroups of this process, v1 or v2; none where neither sets a limit.
pub fn available_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let cgroups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let bounds = limits(&cgroups).into_iter().filter_map(|path| number(&read(&path)?));
    let installed = read(Path::new("/proc/meminfo")).and_then(|text| total(&text));
    bounds.chain(installed).min()
}

/// Files that may hold a bound: of the process's own group and of each that it lies in, which bound it too. Within a
/// container the path may be one of the host's; then the root of what is mounted is the container's own group.
fn limits(cgroups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            some if some.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(path.trim_start_matches('/'));
        files.extend(group.ancestors().map(|group| Path::new(root).join(group).join(file)));
    }
    files
}

/// `max`, which is no number, means that there is no bound.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    number(line.trim().strip_suffix("kB")?)?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_that_bounds_this_one_is_read() {
        let shown = |text: &str| {
            limits(text).iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            shown("0::/system.slice/regatta.service\n"),
            "/sys/fs/cgroup/system.slice/regatta.service/memory.max /sys/fs/cgroup/system.slice/memory.max \
             /sys/fs/cgroup/memory.max"
        );
        assert_eq!(
            shown("9:cpu:/a\n8:hugetlb,memory:/a\n"),
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes /sys/fs/cgroup/memory/memory.limit_in_bytes"
        );
        assert_eq!(shown("nonsense"), "");
    }

    #[test]
    fn a_bound_is_a_number() {
        assert_eq!((number("max\n"), number("536870912\n")), (None, Some(536_870_912)));
        assert_eq!(total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
