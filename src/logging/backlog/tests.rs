//! Lines are written once and in order, or counted in their place.

use std::io;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::{prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::*;

/// A pipe with so much room that its reader empties now and then, or a file on a disk that is full at times.
#[derive(Debug, Default)]
struct Pipe {
    room: usize,
    fails: bool,
    text: Vec<u8>,
}

impl ByteSink for Pipe {
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, SinkError> {
        let taken = bytes.len().min(self.room);
        if taken == 0 {
            let full = || SinkError::Failed(io::ErrorKind::StorageFull.into());
            return Err(if self.fails { full() } else { SinkError::Full });
        }
        self.room -= taken;
        self.text.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn is_torn(&self) -> Option<bool> {
        None
    }

    fn dropped_lines_notice(&self, missing: u64, _: &str) -> Vec<u8> {
        format!("missing {missing}\n").into_bytes()
    }
}

impl Pipe {
    fn lines(&self) -> Vec<&str> {
        str::from_utf8(&self.text).unwrap().lines().collect()
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn lines_wait_in_order_and_a_line_in_the_place_of_the_lost_ones_counts_them() {
    let (mut log, mut pipe) = (LineBacklog::default(), Pipe::default());
    let line = |number: usize| format!("{number:099}\n").into_bytes();
    let lost: u64 = (0..5000).map(|number| log.log(&line(number), seconds(1), &mut pipe)).sum();
    let kept = 5000 - usize::try_from(lost).unwrap();
    assert!(kept * (100 + ENTRY_OVERHEAD) <= MAX_QUEUED_BYTES && kept > 1000, "{kept}");
    assert_eq!(log.pending_wait(), Some(BacklogWait::Writable));
    pipe.room = usize::MAX;
    while log.pending_wait().is_some() {
        assert_eq!(log.flush(seconds(2), &mut pipe), 0);
    }
    assert_eq!(log.log(b"after\n", seconds(2), &mut pipe), 0);
    let lines = pipe.lines();
    assert!(lines[..kept].iter().enumerate().all(|(number, text)| text.parse() == Ok(number)));
    assert_eq!(lines[kept..], [&format!("missing {lost}"), "after"]);
}

#[test]
fn one_gap_is_one_line_however_slowly_the_sink_takes_lines() {
    let (mut log, mut pipe) = (LineBacklog::default(), Pipe::default());
    let line = vec![b'x'; 1000];
    let mut lost = 0;
    for second in 0..400 {
        lost += log.log(&line, seconds(second), &mut pipe);
    }
    for second in 400..500 {
        pipe.room += 1000;
        log.flush(seconds(second), &mut pipe);
        lost += log.log(&line, seconds(second), &mut pipe);
    }
    assert!(lost > 200 && !pipe.text.windows(7).any(|part| part == b"missing"), "half is not free yet");
}

#[test]
fn what_was_torn_by_a_full_disk_is_not_gone_on_with() {
    let (mut log, mut disk) = (LineBacklog::default(), Pipe { room: 3, fails: true, ..Pipe::default() });
    assert_eq!(log.log(b"first\n", seconds(1), &mut disk), 1);
    assert_eq!(log.log(b"second\n", seconds(2), &mut disk), 1);
    assert_eq!(log.pending_wait(), Some(BacklogWait::At(seconds(3))));
    disk.room = 100;
    assert_eq!(log.log(b"third\n", seconds(2), &mut disk), 1, "it is not tried for every line");
    assert_eq!(log.flush(seconds(3), &mut disk), 0);
    assert_eq!((disk.lines(), log.pending_wait()), (vec!["fir", "missing 3"], None));
}

#[test]
fn a_count_that_a_full_disk_has_cut_short_is_written_again() {
    let (mut log, mut disk) = (LineBacklog::default(), Pipe { fails: true, ..Pipe::default() });
    let mut lost = log.log(b"line\n", seconds(1), &mut disk);
    disk.room = 8;
    lost += log.flush(seconds(2), &mut disk);
    (disk.room, disk.fails) = (100, false);
    lost += log.flush(seconds(9), &mut disk);
    assert_eq!((lost, disk.lines().last().copied()), (1, Some("missing 1")), "{:?}", disk.lines());
}

#[test]
fn room_that_is_none_is_no_busy_loop() {
    let (mut log, mut pipe) = (LineBacklog::default(), Pipe::default());
    log.log(b"line\n", seconds(1), &mut pipe);
    assert_eq!(log.pending_wait(), Some(BacklogWait::Writable));
    log.flush(seconds(2), &mut pipe);
    assert_eq!(log.pending_wait(), Some(BacklogWait::At(seconds(3))));
    pipe.room = 2;
    log.flush(seconds(3), &mut pipe);
    assert_eq!(log.pending_wait(), Some(BacklogWait::Writable), "it took something");
}

/// What happens to a log.
#[derive(Debug, Clone)]
enum Step {
    Line(usize),
    Room(usize),
    Fails(bool),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (6..20_000_usize).prop_map(Step::Line),
        2 => (0..80_000_usize).prop_map(Step::Room),
        1 => any::<bool>().prop_map(Step::Fails),
        2 => Just(Step::Flush),
    ]
}

proptest! {
    #[test]
    fn every_line_is_written_once_in_order_or_counted_in_its_place(steps in vec(step(), 1..300)) {
        let (mut log, mut pipe) = (LineBacklog::default(), Pipe::default());
        let (mut count, mut lost) = (0_usize, 0);
        for (at, step) in steps.into_iter().enumerate() {
            let now = Duration::from_millis(at as u64 * 7);
            match step {
                Step::Line(len) => {
                    let text = format!("{count:len$}\n", len = len - 1);
                    lost += log.log(text.as_bytes(), now, &mut pipe);
                    count += 1;
                }
                Step::Room(room) => pipe.room = room,
                Step::Fails(fails) => pipe.fails = fails,
                Step::Flush => lost += log.flush(now, &mut pipe),
            }
            prop_assert!(log.queued_bytes <= MAX_QUEUED_BYTES + 20_000 + ENTRY_OVERHEAD, "{}", log.queued_bytes);
        }
        (pipe.room, pipe.fails) = (usize::MAX, false);
        while log.pending_wait().is_some() {
            lost += log.flush(seconds(9999), &mut pipe);
        }
        let (mut next, mut missing) = (0, 0);
        for line in pipe.lines() {
            match line.strip_prefix("missing ").map(str::parse::<usize>) {
                Some(Ok(number)) => (next, missing) = (next + number, missing + number),
                // What a full disk has cut short is no count.
                Some(Err(_)) => {}
                // What a full disk has cut short is no line.
                None if line.trim().parse() == Ok(next) && line.len() > 4 => next += 1,
                None => prop_assert!(line.trim().parse() != Ok(next + 1), "out of order: {line}"),
            }
        }
        prop_assert_eq!((next, missing as u64), (count, lost));
    }
}
