"""Certificates for one test run, made by `openssl`: an authority, and one for a server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from reliable_mq.testing.brokers.base import Missing

__all__ = ["Certificates"]


class Certificates(NamedTuple):
    """Files in PEM: the authority that clients trust, the server's certificate, and its key."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path, *, host: str = "localhost", expired: bool = False) -> Certificates:
        """An authority of its own, and a certificate of it for `host` and 127.0.0.1.

        `host="elsewhere.invalid"` leaves 127.0.0.1 out: then no name of this machine fits.
        """
        if shutil.which("openssl") is None:
            msg = "openssl is missing, which makes the certificates: apt-get install openssl"
            raise Missing(msg)
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
        names = f"DNS:{host}" + (",IP:127.0.0.1" if host == "localhost" else "")
        authority_key = folder / "ca.key"
        request = folder / "server.csr"
        extensions = folder / "server.ext"
        extensions.write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        _openssl(
            "req", "-x509", *key, "-keyout", authority_key, "-out", made.authority,
            "-days", "2", "-subj", "/CN=reliable-mq tests",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        _openssl("req", *key, "-keyout", made.key, "-out", request, "-subj", f"/CN={host}")
        _openssl(
            "x509", "-req", "-in", request, "-CA", made.authority, "-CAkey", authority_key,
            "-set_serial", "1", "-extfile", extensions, "-out", made.certificate,
            "-days", "-1" if expired else "2",
        )  # fmt: skip
        return made

    def copy_to(self, folder: Path) -> Certificates:
        """The same certificates in another folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return Certificates(*(Path(shutil.copy(file, folder)) for file in self))


def _openssl(*arguments: str | Path) -> None:
    command = ["openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)}: {done.stderr.decode(errors='replace')}"
        raise RuntimeError(msg)
