//! The image by itself: what it has for packages, in guests that have none.

use exec_sandbox::{Exit, Language};
use vmtests::{World, run, stderr, stdout};

/// What a program prints, in a world of its own.
async fn said(language: Language, code: &str) -> String {
    let world = World::new();
    let scheduler = world.scheduler().await;
    let outcome = run(&world, &scheduler, language, code).await;
    assert_eq!((outcome.exit, stderr(&outcome).as_str()), (Exit::Code(0), ""), "{language}");
    scheduler.close().await.expect("nothing is left");
    stdout(&outcome)
}

#[tokio::test]
async fn a_guest_without_packages_has_an_empty_place_for_them() {
    let code = "ls -A /opt/packages | wc -l; readlink /node_modules; readlink /usr/local/lib/python3*/dist-packages; echo $PATH";
    let places = "0\n/opt/packages/node_modules\n/opt/packages/python\n";
    let path = "/home/user/.local/bin:/opt/packages/bin:/usr/local/bin:/usr/bin:/bin\n";
    assert_eq!(said(Language::Raw, code).await, format!("{places}{path}"));
}

#[tokio::test]
async fn python_does_not_look_where_no_packages_are() {
    let code =
        "import cloudpickle, sys; print([p for p in sys.path if 'local' in p or 'opt' in p], cloudpickle.__file__)";
    assert_eq!(said(Language::Python, code).await, "[] /usr/lib/python3/dist-packages/cloudpickle/__init__.py\n");
}

#[tokio::test]
async fn bun_minds_no_way_that_leads_nowhere() {
    let code = "
        const { mkdirSync, writeFileSync } = require('node:fs');
        mkdirSync('node_modules/own', { recursive: true });
        writeFileSync('node_modules/own/index.js', 'module.exports = 7');
        console.log(require('own'));
        try { require('nobodys') } catch (error) { console.log(error.code) }";
    assert_eq!(said(Language::JavaScript, code).await, "7\nMODULE_NOT_FOUND\n");
}

#[tokio::test]
async fn a_directory_is_packed_to_the_same_bytes_each_time() {
    let code = "
        mkdir -p layer/python layer/bin
        yes 'def f(): pass' | head -n 20000 > layer/python/m.py
        printf '#!/bin/sh\\n' > layer/bin/m
        chmod 755 layer/bin/m
        pack() {
            mkfs.erofs --quiet -zlz4hc --all-root -T0 -U 00000000-0000-4000-8000-000000000001 $1 layer >/dev/null
        }
        pack one
        touch layer/python/m.py
        pack two
        cmp one two && dd if=one bs=1 skip=1024 count=4 status=none | od -An -tx4
        test $(stat -c %s one) -lt 100000 && echo small";
    // The magic number of EROFS, where its superblock is.
    assert_eq!(said(Language::Raw, code).await, " e0f5e1e2\nsmall\n");
}
