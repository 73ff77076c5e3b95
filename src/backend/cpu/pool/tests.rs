use std::sync::atomic::AtomicU64;

use super::*;

const COUNTS: [usize; 4] = [1, 2, 3, 8];

fn pool(threads: usize) -> Pool {
    Pool::new(Some(threads)).expect("threads start")
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload.downcast_ref::<&str>().copied().unwrap_or("another payload")
}

/// A job of as many tasks as there are threads, of which each waits for all to begin.
fn meet(pool: &Pool) {
    let begun = AtomicUsize::new(0);
    pool.for_each(pool.threads(), 1, |_| {
        begun.fetch_add(1, Ordering::Relaxed);
        while begun.load(Ordering::Relaxed) < pool.threads() {
            std::thread::yield_now();
        }
    });
}

#[test]
fn every_thread_takes_part_if_there_is_work_for_it() {
    for threads in COUNTS {
        let pool = pool(threads);
        (0..200).for_each(|_| meet(&pool)); // or it would wait for ever
    }
}

#[test]
fn each_task_is_claimed_exactly_once() {
    for threads in COUNTS {
        let pool = pool(threads);
        for (count, least) in [(0, 1), (1, 1), (2, 1), (17, 4), (1000, 1), (1000, 64)] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(count, least, |task| {
                done[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {count} tasks");
        }
    }
}

#[test]
fn a_thread_takes_its_own_share_front_to_back_in_ever_smaller_runs_before_it_helps_with_the_next() {
    let tasks = Tasks::new(1000, 2, 2);
    let runs: Vec<Range<usize>> = tasks.claims(&Worker { index: 1, spin: false }).collect();
    assert_eq!((runs[0].start, runs[runs.len() - 1].end), (500, 500));
    let (own, other) = runs.split_at(runs.iter().position(|run| run.start == 0).expect("it helps"));
    for share in [own, other] {
        assert!(share.windows(2).all(|two| two[0].end == two[1].start));
        assert!(share.is_sorted_by(|a, b| a.len() >= b.len()));
        assert!(share[0].len() > 100 && share[share.len() - 1].len() <= 2);
    }
}

#[test]
fn but_for_the_last_of_a_share_runs_are_multiples_of_the_least() {
    let tasks = Tasks::new(2 * 51, 4, 2);
    let runs = tasks.claims(&Worker { index: 0, spin: false }).map(|run| run.len());
    assert_eq!(runs.collect::<Vec<_>>(), [20, 12, 8, 4, 4, 3].repeat(2));
}

#[test]
fn more_threads_than_shares_take_every_task_once_too() {
    let tasks = Tasks::new(100, 1, 3 * SHARES);
    let runs = |index| tasks.claims(&Worker { index, spin: false }).flatten();
    let mut taken: Vec<usize> = (0..3 * SHARES).rev().flat_map(|thread| runs(thread).take(2)).collect();
    taken.extend(runs(0));
    taken.sort_unstable();
    assert_eq!(taken, (0..100).collect::<Vec<_>>());
}

#[test]
fn what_was_written_in_a_task_is_read_by_those_who_waited_for_it() {
    for threads in COUNTS {
        let pool = pool(threads);
        let slots: Vec<AtomicU64> = (0..20).map(|_| AtomicU64::new(0)).collect();
        for round in 0..500u64 {
            let phases: Vec<Tasks> = (0..3).map(|_| Tasks::new(slots.len(), 1, threads)).collect();
            pool.run(|worker| {
                for (tasks, stamp) in phases.iter().zip(3 * round + 1..) {
                    for run in tasks.claims(worker) {
                        for task in run {
                            assert_eq!(slots[task].swap(stamp, Ordering::Relaxed), stamp - 1);
                        }
                    }
                    worker.wait(tasks);
                    // others may be in the next phase
                    assert!(slots.iter().all(|slot| slot.load(Ordering::Relaxed) >= stamp));
                }
            });
        }
    }
}

#[test]
fn nobody_has_to_wait_where_there_are_no_tasks() {
    pool(2).run(|worker| worker.wait(&Tasks::new(0, 1, 2)));
}

#[test]
fn a_panic_of_any_task_reaches_the_caller_and_the_pool_stays_usable() {
    for threads in COUNTS {
        let pool = pool(threads);
        for culprit in 0..2 * threads {
            let tasks = Tasks::new(2 * threads, 1, threads);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|worker| {
                    for mut run in tasks.claims(worker) {
                        if run.any(|task| task == culprit) {
                            resume_unwind(Box::new("the culprit's words"));
                        }
                    }
                    worker.wait(&tasks); // would be for ever, if the culprit's tasks never counted as done
                });
            }));
            assert_eq!(panic_text(&*result.expect_err("the panic comes through")), "the culprit's words");
            meet(&pool);
        }
    }
}

#[test]
fn a_job_within_a_job_runs_on_its_caller_alone() {
    let pool = pool(3);
    let inner = AtomicUsize::new(0);
    pool.run(|_| {
        let caller = std::thread::current().id();
        pool.run(|worker| {
            assert_eq!((worker.index, std::thread::current().id()), (0, caller));
            inner.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert!((1..=3).contains(&inner.into_inner()));
}

#[test]
fn two_threads_may_use_one_pool_at_the_same_time() {
    let pool = pool(2);
    let sum = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.for_each(10, 1, |task| {
                        sum.fetch_add(task, Ordering::Relaxed);
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 2 * 200 * 45);
}

#[test]
fn sleeping_workers_wake_for_the_next_job() {
    for threads in COUNTS {
        let pool = pool(threads);
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            meet(&pool);
        }
    }
}

#[test]
fn without_a_wish_the_pool_has_a_thread_for_each_core() {
    let threads = Pool::new(None).expect("threads start").threads();
    assert!((1..=cores::available()).contains(&threads));
    assert_eq!(threads, cores::count());
}

#[test]
fn a_share_is_the_same_part_of_every_list_and_each_task_of_each_list_is_done_once() {
    let counts = [7, 0, 96, 16];
    for threads in [1, 2, 3, 40] {
        let tasks = Tasks::of_lists(counts.into_iter(), 2, threads);
        let shares = threads.min(SHARES);
        let mut seen: Vec<(usize, usize)> = Vec::new();
        for index in (0..shares).rev() {
            let before = seen.len();
            let mut claims = tasks.claims(&Worker { index, spin: false });
            claims.shares = 1; // none of others' shares
            for run in claims {
                tasks.in_lists(run, counts.into_iter(), |list, tasks| {
                    seen.extend(tasks.map(|task| (list, task)))
                });
            }
            let of_share = |(list, task): &(usize, usize)| part(counts[*list], index, shares).contains(task);
            assert!(seen[before..].iter().all(of_share), "share {index} of {shares}");
        }
        seen.sort();
        let all: Vec<_> =
            (0..counts.len()).flat_map(|list| (0..counts[list]).map(move |task| (list, task))).collect();
        assert_eq!(seen, all);
    }
}
