//! What a program file is: for which architecture, and which build of it.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::OnceLock;

/// Letters of a build's name.
const NAME_LEN: usize = 12;

/// Note that the linker puts into a program, a digest of all that is in it; `ld --build-id`.
const NT_GNU_BUILD_ID: u32 = 3;

/// Kind of program header that points to notes; elf(5).
const PROGRAM_HEADER_NOTE: u32 = 4;

/// Most bytes of notes that are looked at.
const NOTE_BYTES_MAX: usize = 64 << 10;

/// Why a file cannot be run on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecutableError {
    /// It cannot be looked at.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// A folder, a device or the like.
    #[error("it is no file")]
    NotAFile,
    /// The permission is missing.
    #[error("it is not executable (chmod +x)")]
    NotExecutable,
    /// Neither ELF nor `#!`.
    #[error("it is neither a program nor a script that begins with #!")]
    NotAProgram,
    /// Made for another processor.
    #[error("it is built for another processor (ELF machine {theirs}, this one is {ours})")]
    WrongArchitecture {
        /// Its architecture, as elf(5) numbers them.
        theirs: u16,
        /// This program's.
        ours: u16,
    },
}

/// What the kernel makes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutableFormat {
    /// It runs it.
    Program,
    /// It runs the interpreter that the first line names.
    Script,
}

/// Finds out that the kernel would at least begin to run the file.
///
/// The C library gives a file that the kernel does not know to a shell, whose error would be of no use.
///
/// # Errors
/// See `Error`.
pub fn check_executable(path: &Path) -> Result<ExecutableFormat, ExecutableError> {
    let metadata = std::fs::metadata(path).map_err(ExecutableError::Unreadable)?;
    if !metadata.is_file() {
        return Err(ExecutableError::NotAFile);
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).map_err(|_| ExecutableError::NotExecutable)?;
    // A program may be executable and not readable; then the exec reports what is wrong.
    let Ok(file) = File::open(path) else { return Ok(ExecutableFormat::Program) };
    let mut head = [0; 20];
    let len = file.read_at(&mut head, 0).map_err(ExecutableError::Unreadable)?;
    match &head[..len] {
        [b'#', b'!', ..] => Ok(ExecutableFormat::Script),
        [0x7f, b'E', b'L', b'F', .., low, high] if len == head.len() => {
            let theirs = u16::from_le_bytes([*low, *high]);
            match own_architecture() {
                Some(ours) if ours != theirs => Err(ExecutableError::WrongArchitecture { theirs, ours }),
                _ => Ok(ExecutableFormat::Program),
            }
        }
        _ => Err(ExecutableError::NotAProgram),
    }
}

/// One file at one moment: another one in its place, or a change of it, is another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Which file lies there now.
///
/// # Errors
/// When there is none.
pub fn file_identity(path: &Path) -> io::Result<FileIdentity> {
    let file = std::fs::metadata(path)?;
    let written = (file.mtime(), file.mtime_nsec());
    Ok(FileIdentity { device: file.dev(), inode: file.ino(), size: file.size(), modified: written })
}

fn own_architecture() -> Option<u16> {
    let mut head = [0; 20];
    File::open("/proc/self/exe").ok()?.read_exact_at(&mut head, 0).ok()?;
    Some(u16::from_le_bytes([head[18], head[19]]))
}

/// The version that the program says it has.
static PROGRAM_VERSION: OnceLock<String> = OnceLock::new();

/// Has this process say another version than the library's; the first one said holds.
pub fn set_program_version(version: &str) {
    let _ = PROGRAM_VERSION.set(version.to_owned());
}

/// The library's version.
pub const LIBRARY_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version that the program says, if it says one.
pub fn own_version() -> Option<&'static str> {
    PROGRAM_VERSION.get().map(String::as_str)
}

/// The program's version; the library's if it says none.
pub fn program_version() -> &'static str {
    own_version().unwrap_or(LIBRARY_VERSION)
}

/// The program's version, and which build of it this process runs.
pub fn build_version() -> String {
    format!("{} {}", program_version(), build_id_of(Path::new("/proc/self/exe")))
}

/// A short name that distinguishes two builds of a program, the same wherever the build runs.
///
/// From the linker's build id; where there is none, from size and time of the file.
fn build_id_of(path: &Path) -> String {
    let Ok(file) = File::open(path) else { return "unknown".to_owned() };
    if let Some(id) = build_id(&file) {
        let mut name = String::with_capacity(2 * id.len());
        for byte in id {
            let _ = write!(name, "{byte:02x}");
        }
        name.truncate(NAME_LEN);
        return name;
    }
    let Ok(metadata) = file.metadata() else { return "unknown".to_owned() };
    let time = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
    // Fibonacci hashing: the numbers differ in their last digits, the name is to differ in all.
    let mixed = (time.cast_unsigned() ^ metadata.size().rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{mixed:016x}")[..NAME_LEN].to_owned()
}

/// The linker's build id of a 64-bit little-endian program.
fn build_id(file: &File) -> Option<Vec<u8>> {
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return None;
    }
    let (offset, size, count) = (u64_at(&head, 32)?, u16_at(&head, 54)?, u16_at(&head, 56)?);
    for index in 0..u64::from(count) {
        let mut header = [0; 56];
        file.read_exact_at(&mut header, offset.checked_add(index * u64::from(size))?).ok()?;
        if u32_at(&header, 0)? != PROGRAM_HEADER_NOTE {
            continue;
        }
        let len = usize::try_from(u64_at(&header, 32)?).ok()?.min(NOTE_BYTES_MAX);
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, u64_at(&header, 8)?).ok()?;
        if let Some(id) = find_id(&bytes) {
            return Some(id.to_vec());
        }
    }
    None
}

/// The build id among notes: each has the lengths of name and content, its type, the name, the content, all in steps
/// of four bytes.
fn find_id(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let name_len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let len = usize::try_from(u32_at(bytes, 4)?).ok()?;
        let kind = u32_at(bytes, 8)?;
        let start = 12_usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let content = bytes.get(start..start.checked_add(len)?)?;
        if kind == NT_GNU_BUILD_ID && bytes.get(12..16) == Some(b"GNU\0") {
            return Some(content);
        }
        bytes = bytes.get(start + len.checked_next_multiple_of(4)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn what_cannot_run_is_named_by_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let own = fs::read("/proc/self/exe").unwrap();
        let mut foreign = own[..64].to_vec();
        foreign[18] ^= 1;
        let message = |path: &Path| check_executable(path).unwrap_err().to_string();
        assert!(message(&folder.path().join("missing")).contains("cannot be read"));
        assert!(message(folder.path()).contains("no file"));
        assert!(message(&file(folder.path(), "plain", &own[..64], 0o644)).contains("not executable"));
        assert!(message(&file(folder.path(), "foreign", &foreign, 0o755)).contains("another processor"));
        assert!(message(&file(folder.path(), "text", b"hello", 0o755)).contains("neither a program"));
        assert!(message(&file(folder.path(), "empty", b"", 0o755)).contains("neither a program"));
        assert!(check_executable(&file(folder.path(), "script", b"#!/bin/sh\n", 0o755)).is_ok());
        assert!(check_executable(Path::new("/proc/self/exe")).is_ok());
    }

    #[test]
    fn a_build_has_one_name_wherever_its_file_lies() {
        let folder = tempfile::tempdir().unwrap();
        let own = Path::new("/proc/self/exe");
        let copy = folder.path().join("copy");
        fs::copy(own, &copy).unwrap();
        assert_eq!(build_id_of(own).len(), NAME_LEN);
        if build_id(&File::open(own).unwrap()).is_some() {
            assert_eq!(build_id_of(own), build_id_of(&copy));
        }
        let (one, two) = (file(folder.path(), "a", b"#!a", 0o755), file(folder.path(), "b", b"#!bc", 0o755));
        assert_ne!(build_id_of(&one), build_id_of(&two));
        assert_eq!(build_id_of(&folder.path().join("missing")), "unknown");
    }

    #[test]
    fn garbage_in_the_section_is_no_build_id() {
        for garbage in [&b""[..], &[0xff; 64], &[0; 11], b"\x04\0\0\0\xff\xff\xff\xff\x03\0\0\0GNU\0"] {
            assert_eq!(find_id(garbage), None);
        }
        let section = [&b"\x04\0\0\0\x02\0\0\0\x03\0\0\0GNU\0"[..], b"\xab\xcd\0\0"].concat();
        assert_eq!(find_id(&section), Some(&[0xab, 0xcd][..]));
    }
}
