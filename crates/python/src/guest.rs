//! What sessions and VMs have in common: programs run in them, and files go in and out. A session says why it is over; a VM
//! that has ended only that it has.

use std::{path::Path, sync::Arc};

use exec_sandbox::{Error, ExecRequest, FileInfo, Output, QemuVm, Session, WriteOptions};
use pyo3::prelude::*;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use crate::{outcome::Outcome, requests::Program, runtime::promise, stream::OutputStream};

/// Where a call goes.
#[derive(Clone, Debug)]
pub(crate) enum Guest {
    Session(Arc<Session>),
    Vm(Arc<QemuVm>),
}

impl Guest {
    /// Runs a program, for Python to await.
    pub(crate) fn exec_promise<'py>(
        self,
        py: Python<'py>,
        program: Program,
        stream: Option<&Bound<'py, OutputStream>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = program.into_request();
        let output = stream.map(|stream| stream.get().sender()).transpose()?;
        promise(py, "exec", async move { Ok(Outcome::from(self.exec(request, output).await?)) })
    }

    /// Lists a directory, for Python to await.
    pub(crate) fn list_promise(self, py: Python<'_>, path: String) -> PyResult<Bound<'_, PyAny>> {
        promise(py, "list_files", async move {
            let files = self.list_files(Path::new(&path)).await?;
            let entry = |file: FileInfo| (file.is_dir(), file.size, file.name);
            Ok(files.into_iter().map(entry).collect::<Vec<_>>())
        })
    }

    async fn exec(
        &self,
        request: ExecRequest,
        output: Option<mpsc::Sender<Output>>,
    ) -> Result<exec_sandbox::Outcome, Error> {
        match (self, output) {
            (Self::Session(session), None) => session.exec(request).await,
            (Self::Session(session), Some(output)) => session.exec_streaming(request, output).await,
            (Self::Vm(vm), None) => vm.execute(request).await,
            (Self::Vm(vm), Some(output)) => vm.execute_streaming(request, output).await,
        }
    }

    pub(crate) async fn write_file(
        &self,
        path: &Path,
        content: impl AsyncRead + Unpin,
        options: WriteOptions,
    ) -> Result<u64, Error> {
        match self {
            Self::Session(session) => session.write_file(path, content, options).await,
            Self::Vm(vm) => vm.write_file(path, content, options).await,
        }
    }

    pub(crate) async fn read_file(&self, path: &Path, destination: impl AsyncWrite + Unpin) -> Result<u64, Error> {
        match self {
            Self::Session(session) => session.read_file(path, destination).await,
            Self::Vm(vm) => vm.read_file(path, destination).await,
        }
    }

    async fn list_files(&self, path: &Path) -> Result<Vec<FileInfo>, Error> {
        match self {
            Self::Session(session) => session.list_files(path, 1).await,
            Self::Vm(vm) => vm.list_files(path, 1).await,
        }
    }
}
