"""Sidecars in the forms of other programs, after their documentation, and tools of others that read them."""

import re
import shutil
import subprocess

import pytest

PACKET = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
XMP = "http://ns.adobe.com/xap/1.0/"

# Attributes, then edits in lists and mask data.
DARKTABLE = f"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF {RDF}>
  <rdf:Description rdf:about=""
    xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="{XMP}"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:darktable="http://darktable.sf.net/"
   exif:DateTimeOriginal="2024:05:01 10:00:00.000"
   xmp:Rating="2"
   xmpMM:DerivedFrom="a.jpg"
   darktable:xmp_version="5"
   darktable:history_end="1">
   <darktable:masks_history>
    <rdf:Seq/>
   </darktable:masks_history>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:num="0"
      darktable:operation="exposure"
      darktable:params="gz03eJxjYGBg8HhfY&amp;+'&gt;"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
# A packet, with labels of its own and a comment.
DIGIKAM = (
    PACKET
    + f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF {RDF}>
  <!-- Grüße & -->
  <rdf:Description rdf:about=''
    xmlns:digiKam='http://www.digikam.org/ns/1.0/'
    xmlns:xmp="{XMP}"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   digiKam:PickLabel="0" digiKam:ColorLabel="0"
   xmp:Rating = '2'>
   <digiKam:TagsList><rdf:Seq><rdf:li>Ort/Zürich</rdf:li></rdf:Seq></digiKam:TagsList>
   <dc:title><rdf:Alt><rdf:li xml:lang="x-default"><![CDATA[a < b]]></rdf:li></rdf:Alt></dc:title>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
)
# Develop settings and a history, whose nested resources may hold properties of the same name.
LIGHTROOM = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000 1.000000, 0000/00/00-00:00:00">
 <rdf:RDF {RDF}>
  <rdf:Description rdf:about=""
    xmlns:xap="{XMP}"
    xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"
    xmlns:stEvt="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
    xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/"
   xap:Rating="2" crs:Exposure2012="+0.50" crs:HasSettings="True">
   <xmpMM:History><rdf:Seq>
     <rdf:li rdf:parseType="Resource"><stEvt:action>derived</stEvt:action><xap:Rating>9</xap:Rating></rdf:li>
     <rdf:li><rdf:Description xap:Rating="9" stEvt:action="saved"/></rdf:li>
   </rdf:Seq></xmpMM:History>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>"""
# Elements, one rdf:Description for each namespace.
EXIFTOOL = (
    PACKET
    + f"""<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk='Image::ExifTool 12.57'>
<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>

 <rdf:Description rdf:about=''
  xmlns:dc='http://purl.org/dc/elements/1.1/'>
  <dc:format>image/jpeg</dc:format>
 </rdf:Description>

 <rdf:Description rdf:about=''
  xmlns:xmp='{XMP}'>
  <xmp:Rating>2</xmp:Rating>
  <xmp:Label/>
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end='w'?>"""
)
FORMS = {"darktable": DARKTABLE, "digikam": DIGIKAM, "lightroom": LIGHTROOM, "exiftool": EXIFTOOL}
# How each holds the rating, with the blanks before it.
RATINGS = {
    "darktable": '\n   xmp:Rating="2"',
    "digikam": "\n   xmp:Rating = '2'",
    "lightroom": '\n   xap:Rating="2"',
    "exiftool": "\n  <xmp:Rating>2</xmp:Rating>",
}


def read_by_exiftool(path):
    """{"Rating": "2", ...} by the names that programs ask for."""
    if not shutil.which("exiftool"):
        pytest.skip("no exiftool: libimage-exiftool-perl")
    out = subprocess.run(["exiftool", "-s", path], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"^(\S+)\s+: (.*)$", out, re.MULTILINE))


def read_by_exiv2(path):
    """{"Xmp.xmp.Rating": "2", ...}"""
    if not shutil.which("exiv2"):
        pytest.skip("no exiv2")
    done = subprocess.run(["exiv2", "-PXkv", path], capture_output=True, text=True)
    assert done.stderr == ""
    return dict(re.findall(r"^(\S+) +(.*)$", done.stdout, re.MULTILINE))


def put_into_jpeg(path, packet):
    """Put XMP into a JPEG, behind a segment of another kind."""
    segments = b"http://ns.adobe.com/xap/1.0/\0" + packet
    with open(path, "rb") as file:
        data = file.read()
    other = b"\xff\xee\x00\x08other."
    xmp = b"\xff\xe1" + (len(segments) + 2).to_bytes(2, "big") + segments
    with open(path, "wb") as file:
        file.write(data[:2] + other + xmp + data[2:])
