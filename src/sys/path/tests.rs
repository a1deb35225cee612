//! Paths that this user, root or others control. What needs another user is in the integration tests.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::sys::stat::Mode;

use super::*;

const MOST: u64 = 1 << 20;

fn read_error(path: &Path) -> String {
    error_detail(path, &read(path, MOST).unwrap_err())
}

#[test]
fn only_a_file_is_read_and_nothing_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "text").unwrap();
    symlink(at("file"), at("link")).unwrap();
    let found = read(&at("link"), MOST).unwrap();
    assert_eq!((found.bytes.as_slice(), found.real), (&b"text"[..], at("file").canonicalize().unwrap()));
    assert_eq!(read(Path::new("/dev/null"), MOST).unwrap().bytes, b"");
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    assert!(read_error(&at("fifo")).contains("a pipe"));
    assert!(read_error(folder.path()).contains("a folder"));
    assert!(read_error(Path::new("/dev/zero")).contains("a device"));
    File::create(at("giant")).unwrap().set_len(MOST + 1).unwrap();
    assert!(read_error(&at("giant")).contains("more than 1048576"));
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    assert_eq!(read_error(&at("none")), "it is not there");
    assert_eq!(read(&at("none"), MOST).unwrap_err().kind(), io::ErrorKind::NotFound);
    symlink("releases/1", at("current")).unwrap();
    symlink("gone", at("dangling")).unwrap();
    let current = read_error(&at("current/regatta.toml"));
    assert!(current.contains("the link") && current.contains("releases/1, which is not there"), "{current}");
    let error = read(&at("dangling"), MOST).unwrap_err();
    assert!(error.to_string().contains("gone, which is not there"), "{error}");
    assert_ne!(error.kind(), io::ErrorKind::NotFound, "something is meant to be there");
    assert!(read_error(&at("x/y/z")).contains("/x is not there"));
}

#[test]
fn a_secret_that_every_user_may_write_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "secret").unwrap();
    assert_eq!(read_secret(&file).unwrap(), b"secret");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(read_secret(&file).unwrap_err().to_string().contains("chmod o-w"));
}

#[test]
fn an_own_file_is_no_link_and_has_one_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("victim"), "precious").unwrap();
    symlink(at("victim"), at("link")).unwrap();
    fs::hard_link(at("victim"), at("hard")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    for (name, why) in [("link", "is a link"), ("hard", "hard link"), ("fifo", "a pipe")] {
        let refused = open_private_file(&at(name)).unwrap_err();
        assert!(
            matches!(&refused, PathError::NotPrivate(message) if message.contains(why)),
            "{name}: {refused}"
        );
    }
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
    fs::remove_file(at("hard")).unwrap();
    fs::set_permissions(at("victim"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(open_private_file(&at("victim")).unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    assert!(open_private_read_only(&at("link")).is_none() && open_private_read_only(&at("victim")).is_some());
    symlink(at("victim"), at("list.next")).unwrap();
    replace_file(&at("list"), b"new").unwrap();
    assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(at("list")).unwrap(), "new");
}

#[test]
fn a_folder_is_made_for_its_owner_and_found_through_links() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let real = ensure_private_folder(&at("a/b/../c/")).unwrap();
    assert_eq!(real, folder.path().canonicalize().unwrap().join("a/c"));
    assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o700);
    symlink("a", at("current")).unwrap();
    assert_eq!(ensure_private_folder(&at("current/c")).unwrap(), real);
    symlink("loop", at("loop")).unwrap();
    assert!(ensure_private_folder(&at("loop/x")).is_err());
    fs::write(at("file"), "").unwrap();
    assert!(ensure_private_folder(&at("file")).unwrap_err().to_string().contains("no folder"));
    assert!(ensure_private_folder(Path::new("relative")).unwrap_err().to_string().contains("working folder"));
}

#[test]
fn a_folder_that_everybody_may_write_is_refused_unless_it_is_sticky() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    let mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&open).unwrap();
    mode(0o777);
    let message = |path: &Path| ensure_private_folder(path).unwrap_err().to_string();
    assert!(message(&open).contains("chmod 700"), "{}", message(&open));
    assert!(message(&open.join("run")).contains("chmod +t"));
    mode(0o1777);
    assert!(ensure_private_folder(&open.join("run")).is_ok());
    assert!(message(&open).contains("chmod 700"), "all would share it");
    mode(0o755);
    assert!(ensure_private_folder(&open).is_ok());
}

#[test]
fn an_open_file_can_stand_for_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let (first, second) = (open_private_file(&one).unwrap(), open_private_file(&two).unwrap());
    replace_descriptor(&first, &second).unwrap();
    drop(second);
    assert_eq!(FileId::from_file(&first).unwrap(), FileId::from_entry(&two).unwrap());
}

#[test]
fn a_path_travels_whatever_its_bytes_are() {
    use std::os::unix::ffi::OsStrExt;
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Travels(
        #[serde(with = "path_serde")] PathBuf,
        #[serde(with = "path_serde::optional")] Option<PathBuf>,
    );
    for bytes in [&b"/srv/x"[..], b"/srv/\xff"] {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        let json = serde_json::to_string(&Travels(path.clone(), Some(path.clone()))).unwrap();
        let Travels(one, other) = serde_json::from_str(&json).unwrap();
        assert_eq!((one, other), (path.clone(), Some(path)));
    }
    let Travels(_, none) = serde_json::from_str("[\"/x\",null]").unwrap();
    assert_eq!(none, None);
}
