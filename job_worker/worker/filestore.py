"""Whether the files of attachments are where this process looks for them."""

import os
from pathlib import Path

from odoo.tools import config

from .. import queries

LATEST = 5


def find_elsewhere(cr, db_name):
    """Look for the files of the latest attachments.

    :return: the folder in which none of them can be read, ``None`` if all is well or there are no attachments
    :rtype: str
    """
    folder = config.filestore(db_name)
    files = queries.latest_files(cr, LATEST)
    if not files or any(os.access(Path(folder, file), os.R_OK) for file in files):
        return None
    return folder
