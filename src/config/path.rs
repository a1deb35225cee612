//! How a path is written in a configuration, a flag or a variable, and what it is relative to.
//!
//! A relative path begins at the folder in which the fleet was started, under the name the operator knows that folder
//! by: where a deployment switches a link (`current`), the path follows the link. Nothing is expanded: `~` and
//! variables are a shell's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::value::basic::InvalidValue;
use crate::sys::path::FileId;

/// A path that names a file.
pub(super) fn file(text: &str, folder: &Path) -> Result<PathBuf, InvalidValue> {
    if text.ends_with('/') || text.ends_with("/.") || text.ends_with("/..") || text == "." || text == ".." {
        return Err("it names a folder, and a file is wanted".into());
    }
    self::folder(text, folder)
}

/// A path that names a folder; one slash more or less at its end makes no difference.
pub(super) fn folder(text: &str, folder: &Path) -> Result<PathBuf, InvalidValue> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.contains('\0') {
        return Err("it has a zero byte in it".into());
    }
    if text.starts_with('~') {
        return Err("~ is a shell's word: write the folder's whole path, or ./~ if that is its name".into());
    }
    Ok(absolute(Path::new(text), folder))
}

/// The path from the root folder on, without `.` and doubled slashes. `..` stays: where it leads depends on links.
pub fn absolute(path: &Path, folder: &Path) -> PathBuf {
    folder.join(path).components().collect()
}

/// The working folder under the name by which a shell came into it (`$PWD`), if it still is the same folder; else as
/// the kernel names it. POSIX, `pwd -L`.
pub(super) fn working_folder(environment: &BTreeMap<String, String>) -> PathBuf {
    let plain =
        |text: &&String| text.starts_with('/') && !text.split('/').any(|part| [".", ".."].contains(&part));
    let here = FileId::from_path(Path::new("."));
    let same =
        |path: &PathBuf| matches!((&here, FileId::from_path(path)), (Ok(here), Ok(there)) if *here == there);
    let named = environment.get("PWD").filter(plain).map(PathBuf::from).filter(same);
    // A folder that was removed has no name: what is relative to it is not there.
    named.or_else(|| std::env::current_dir().ok()).unwrap_or_else(|| PathBuf::from("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_as_it_is_written() {
        let srv = Path::new("/srv/current");
        let is = |text: &str, path: &str| assert_eq!(file(text, srv).unwrap(), Path::new(path), "{text}");
        is("/var//log/x", "/var/log/x");
        is("log/./x y.log", "/srv/current/log/x y.log");
        is("../shared/x", "/srv/current/../shared/x");
        is("./~x", "/srv/current/~x");
        is("$HOME/x", "/srv/current/$HOME/x");
        assert_eq!(folder("data/", srv).unwrap(), Path::new("/srv/current/data"));
        assert_eq!(folder(".", srv).unwrap(), srv);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let refused = |text: &str, why: &str| {
            let error = file(text, Path::new("/srv")).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        };
        refused("", "empty");
        refused("log/", "a folder");
        refused("..", "a folder");
        refused("a\0b", "zero byte");
        refused("~/log", "shell");
        refused("~root/log", "shell");
        assert!(folder("", Path::new("/srv")).is_err());
    }

    #[test]
    fn the_working_folder_has_the_name_in_pwd_if_it_is_that_folder() {
        let folder = tempfile::tempdir().unwrap();
        let here = std::env::current_dir().unwrap();
        let link = folder.path().join("current");
        std::os::unix::fs::symlink(&here, &link).unwrap();
        let named = |pwd: &str| working_folder(&BTreeMap::from([("PWD".to_owned(), pwd.to_owned())]));
        assert_eq!(named(link.to_str().unwrap()), link);
        for other in ["/", "/nowhere", ".", "", &format!("{}/.", link.display())] {
            assert_eq!(named(other), here, "{other}");
        }
        assert_eq!(working_folder(&BTreeMap::new()), here);
    }
}
